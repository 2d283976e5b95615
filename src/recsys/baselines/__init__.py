"""Heuristic candidate generators, their tuning and their evaluation."""
