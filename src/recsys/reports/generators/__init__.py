"""Which candidate generators earn their place: learned and heuristic ones under one budget, and blends of them."""
