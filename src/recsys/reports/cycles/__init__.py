"""What people get to know about retraining cycles: pages, commands that end a stop, notifications."""
