"""The loop: gates that a retrained model has to pass before it replaces what is served."""
