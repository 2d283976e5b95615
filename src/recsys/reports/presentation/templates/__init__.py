"""Templates of HTML pages and tables."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(name: str, **values: Any) -> str:
    """Return a template of this folder filled with values, which are escaped unless the template says `safe`.

    Args:
        name: file name of the template.
        values: variables of the template.
    """
    return _environment().get_template(name).render(values)


@cache
def _environment() -> Environment:
    return Environment(loader=PackageLoader(__name__, ""), autoescape=True, undefined=StrictUndefined)
