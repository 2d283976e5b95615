"""The error of a command's overrides as a value."""

from __future__ import annotations

from collections.abc import Sequence

from recsys.core.errors import UserError
from recsys.experiments.compose import check_overrides


def composition_error(config_name: str, arguments: Sequence[str]) -> str | None:
    try:
        # Every command takes these before it composes.
        general = ("trust=", "sign_key=", "require_signature=")
        check_overrides(config_name, [word for word in arguments if not word.startswith(general)])
    except UserError as error:
        return str(error)
    return None
