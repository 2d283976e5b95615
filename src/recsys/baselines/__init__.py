"""Every heuristic generator on one data set, tuned on validation and measured like a model."""
