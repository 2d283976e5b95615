"""Exception for mistakes of users, and hints in its messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# Longer names are compared by their beginning: the time grows with the length, and requests have names too.
_COMPARED = 100


class UserError(ValueError):
    """Bad input, configuration or file. The message names the place, what was found and what was expected."""


class UnsuitableDataError(UserError):
    """A valid setting that needs something which the data lacks. A variant with such a setting is left out."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return a hint such as `; did you mean 'timestamp'?` for a misspelled `name`, or the list of valid names."""
    names, name = sorted(valid), name[:_COMPARED]
    plain = {"".join(filter(str.isalnum, one)).casefold(): one for one in names}
    same = plain.get("".join(filter(str.isalnum, name)).casefold())
    close = [same] if same else difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        # The notation of Python shows blanks and marks that have no glyph.
        return f"; did you mean {str(close[0])!r}?"
    return f"; valid: {', '.join(names)}" if names else ""
