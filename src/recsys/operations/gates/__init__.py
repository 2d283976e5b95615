"""Gates that a retrained model must pass before it replaces the served release."""
