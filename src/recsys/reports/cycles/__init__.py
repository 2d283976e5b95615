"""Pages about retraining cycles: one for each verdict, and one for all cycles of a model."""
