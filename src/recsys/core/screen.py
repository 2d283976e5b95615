"""The console of tables."""

from rich.console import Console

# Columns of a table that goes to a file or a pipe; a narrow table would cut figures off.
_WIDTH = 160


def screen() -> Console:
    """Return a console as wide as the terminal, or as wide as a table needs where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH)
