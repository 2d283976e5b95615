"""One retraining cycle, from new events to a rolled-out release."""
