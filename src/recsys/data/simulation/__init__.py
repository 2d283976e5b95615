"""Simulated pins: users, items and events with a known truth."""
