"""What people look at: tables and pictures that are the same in a terminal, a notebook and an HTML page."""
