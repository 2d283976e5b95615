"""Batches of tensors from a prepared data set."""
