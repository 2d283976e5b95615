"""Information about retraining cycles for people: pages, commands that end a stop, notifications."""
