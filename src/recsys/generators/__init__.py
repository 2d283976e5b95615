"""Heuristic candidate generators: the baselines that a learned model has to beat."""
