"""Many runs as one: several seeds of one recipe, and sweeps over settings, each nested under a parent run."""
