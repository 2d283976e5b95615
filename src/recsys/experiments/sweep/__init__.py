"""Sweeps in the format of W&B that run on this machine: `recsys sweep sweeps/NAME.yaml`."""
