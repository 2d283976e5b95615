"""The ANN host: item indexes of several versions, and changes to their items."""
