"""The training loop: batches, feature cache, optimizer, checkpoints, processes."""
