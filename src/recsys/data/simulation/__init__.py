"""Simulated pins: a generator of data with a known model, and an oracle that ranks by it."""
