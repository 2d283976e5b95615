"""Comparison of learned and heuristic candidate generators under one budget, and of blends of them."""
