"""Sweeps in the format of W&B, run on this machine: `python -m recsys.sweep sweeps/NAME.yaml`."""
