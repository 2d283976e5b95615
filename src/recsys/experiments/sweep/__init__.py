"""Sweeps in the format of W&B, run on this machine: `recsys sweep sweeps/NAME.yaml`."""
