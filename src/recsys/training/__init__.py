"""One training step: losses, negatives, frequencies, optimizers and checkpoints."""
