"""Python programs of README and docs/python.md, run as they are written."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from commands import REPOSITORY, run_all

pytestmark = pytest.mark.slow


def events() -> pa.Table:
    """Events of 60 users with 80 items of four topics."""
    rng = np.random.default_rng(0)
    user, item = rng.integers(60, size=2000), rng.integers(20, size=2000)
    time = np.sort(rng.integers(0, 40 * 86400, size=2000)) + 1735689600
    return pa.table({"user_id": user, "item_id": 4 * item + user % 4, "timestamp": time})


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))


def run(program: str, folder: Path) -> str:
    (folder / "program.py").write_text(program)
    ((code, output),) = run_all([{"args": [str(folder / "program.py")], "folder": str(folder)}], folder)
    assert code == 0, output
    return output


def test_the_example_of_the_readme(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    (program,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    assert len(program.splitlines()) <= 10
    pyarrow.csv.write_csv(events(), tmp_path / "events.csv")
    shown = run(program, tmp_path)
    assert "[60 rows x 3 columns]" in shown
    assert (tmp_path / "releases").is_dir()


def test_the_examples_of_the_python_page(tmp_path: Path) -> None:
    pytest.importorskip("polars")
    text = (REPOSITORY / "docs/python.md").read_text()
    programs = dict(re.findall(r'```python title="(.*?)"\n(.*?)```', text, re.DOTALL))
    assert list(programs) == ["train.py", "recommend.py", "embed.py"]
    (tmp_path / "events").mkdir()
    pq.write_table(events(), tmp_path / "events/interactions.parquet")
    shown = run("\n".join(f"print('#', {name!r})\n{program}" for name, program in programs.items()), tmp_path)
    _, trained, recommended, embedded = re.split("# (?:train|recommend|embed).py", shown)
    assert "shape: (2, 3)" in trained
    assert "901" in recommended
    assert re.search(r"embedding: .*\n.* 80\n0?\.\d+", embedded), embedded
