from __future__ import annotations

import subprocess
import sys

import pytest

from recsys.cli.commands import COMMANDS

# The root scripts of these names are the contract; `recsys.index` is a room.
SCRIPTS = {"train", "index", "recommend", "serve", "retrain", "refresh"}


@pytest.mark.parametrize("name", sorted({*COMMANDS} - SCRIPTS))
def test_a_command_runs_as_a_module(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"recsys.{COMMANDS[name].config_name}", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: recsys {name} ")
