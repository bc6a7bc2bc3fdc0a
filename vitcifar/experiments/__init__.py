"""Many runs as one: seeds, sweeps, evaluating, comparing and reproducing versions."""
