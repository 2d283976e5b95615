"""Arguments read from source are those that Python finds at run time, and nothing is imported for them."""

from __future__ import annotations

import inspect
import pkgutil
import re
import sys
from pathlib import Path

import pytest

from recsys.core.conf_folder import conf_folder
from recsys.core.signatures import TargetNotFoundError, signature_of

TARGETS = {
    m for file in conf_folder().rglob("*.yaml") for m in re.findall(r"_target_: ([a-z]\w*\.[\w.]+)", file.read_text())
}
TARGETS |= {f"lightning.pytorch.callbacks.{name}" for name in ("LearningRateMonitor", "RichProgressBar", "Timer")}
TARGETS |= {"lightning.pytorch.loggers.CSVLogger", "torch.optim.SGD"}

PACKAGE = {
    "__init__.py": "from .towers import Tower as Renamed\nfrom .parts import *\n",
    "towers.py": """
from dataclasses import dataclass
from typing import ClassVar, Optional, Union
import my_signatures.parts as parts
from .parts import Base

raise RuntimeError("imported")

class Tower(Base):
    pass

class Own(Base):
    def __init__(self, width, *, rate: "float | None" = None, **rest: int) -> None: ...

@dataclass(frozen=True)
class Settings:
    kind: ClassVar[str] = "x"
    size: int
    names: list[str]
    both: Union[int, str] = 1
    maybe: Optional[bool] = None

def build(depth: int, other=None): ...
""",
    "parts.py": "class Base:\n    def __init__(self, dim: int, heads: int = 2, scale: float = 1.0) -> None: ...\n",
}


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_the_source_says_what_python_says(target: str) -> None:
    try:
        parameters = inspect.signature(pkgutil.resolve_name(target)).parameters.values()
    except ValueError:
        assert signature_of(target).takes_any
        return
    expected = {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    assert {*signature_of(target).kinds} == expected
    assert signature_of(target).takes_any == any(p.kind is p.VAR_KEYWORD for p in parameters)


@pytest.fixture
def _package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_signatures").mkdir()
    for name, text in PACKAGE.items():
        (tmp_path / "my_signatures" / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("_package")
def test_a_package_is_read_and_not_imported() -> None:
    names = {target: [*signature_of(f"my_signatures.{target}").kinds] for target in ("Renamed", "Base", "towers.build")}
    assert names == {
        "Renamed": ["dim", "heads", "scale"],
        "Base": ["dim", "heads", "scale"],
        "towers.build": ["depth", "other"],
    }
    own = signature_of("my_signatures.towers.Own")
    assert own.kinds == {"width": None, "rate": {"integer", "number", "null"}}
    assert own.takes_any
    assert signature_of("my_signatures.towers.Settings").kinds == {
        "size": {"integer"},
        "names": {"list"},
        "both": {"integer", "string"},
        "maybe": {"true or false", "null"},
    }
    assert "my_signatures" not in sys.modules


@pytest.mark.usefixtures("_package")
@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("my_signatures.parts.Bas", "my_signatures.parts has no 'Bas'; did you mean 'Base'?"),
        ("my_signature.parts.Base", "no module named 'my_signature'"),
    ],
)
def test_a_path_that_leads_nowhere(target: str, message: str) -> None:
    with pytest.raises(TargetNotFoundError, match=re.escape(message)):
        signature_of(target)
