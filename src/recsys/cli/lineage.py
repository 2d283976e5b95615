"""Where a served version comes from: index, both towers, run, configuration, data, commit; and when it was served.

    recsys lineage VERSION|ALIAS [store=releases] [--json]

Only files are read: the release, its run folder where that is still there, and the store's history.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from rich.console import Console

from recsys.core.errors import UserError

# Of tables that are written to a file or a pipe.
_WIDTH = 160


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the lineage; exit with 1 on a user's error."""
    parser = argparse.ArgumentParser(
        prog="recsys lineage", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("version", metavar="VERSION", help="version or alias of a release, such as production")
    parser.add_argument("store", nargs="?", default="store=releases", metavar="store=DIR", help="folder of releases")
    parser.add_argument("--json", action="store_true", help="for programs")
    asked = parser.parse_args(arguments)
    try:
        _tell(asked)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(1) from error


def _tell(asked: argparse.Namespace) -> None:
    from recsys.operations.lineage import lineage
    from recsys.release.store import ReleaseStore

    key, equals, folder = asked.store.partition("=")
    if key != "store" or not equals:
        raise UserError(f"found '{asked.store}', expected store=DIR")
    found = lineage(ReleaseStore(folder), asked.version)
    if asked.json:
        print(json.dumps(found.to_json(), indent=2))
        return
    console = Console()
    found.print(console if console.is_terminal else Console(width=_WIDTH))


if __name__ == "__main__":
    main()
