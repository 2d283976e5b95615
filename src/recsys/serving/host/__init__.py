"""ANN host: item indexes of several versions, and updates of their items."""
