"""The training loop and its parts: contract, batches ahead, optimizer, schedule, checkpoints, metrics."""
