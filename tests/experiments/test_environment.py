"""The commit that a run records."""

from __future__ import annotations

import subprocess
from pathlib import Path

from recsys.experiments.environment import git_commit


def test_only_changes_of_the_code_are_uncommitted_changes(tmp_path: Path) -> None:
    package, page = tmp_path / "src/package", tmp_path / "results.md"
    package.mkdir(parents=True)
    assert git_commit(package) is None
    (package / "code.py").write_text("1")
    page.write_text("1")

    def git(*words: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True)

    git("init")
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-m", "first")
    commit = git_commit(package)
    assert commit is not None
    assert len(commit) == 40
    page.write_text("2")
    assert git_commit(package) == commit
    (package / "new.py").write_text("")
    assert git_commit(package) == commit + "+"
    (package / "new.py").unlink()
    (package / "code.py").write_text("2")
    assert git_commit(package) == commit + "+"
