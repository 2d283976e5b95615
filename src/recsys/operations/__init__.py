"""The retraining loop: cycles, gates, rollouts and lineage."""
