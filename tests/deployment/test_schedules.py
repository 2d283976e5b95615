"""The schedules of docs/retraining.md are valid, and their commands compose."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from recsys.experiments.compose import check_overrides

DOCUMENT = (Path(__file__).parents[2] / "docs/retraining.md").read_text()
# https://man7.org/linux/man-pages/man5/crontab.5.html: minute, hour, day of month, month, day of week.
RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)


def cron_problem(times: str) -> str | None:
    """Return the fault in the five fields of a schedule; None if there is none."""
    fields = times.split()
    if len(fields) != len(RANGES):
        return f"found {len(fields)} fields, expected {len(RANGES)}"
    for field, (low, high) in zip(fields, RANGES, strict=True):
        for part in field.split(","):
            found = re.fullmatch(r"(?:\*|(\d+)(?:-(\d+))?)(?:/([1-9]\d*))?", part)
            if found is None or any(not low <= int(n) <= high for n in found.groups()[:2] if n is not None):
                return f"found '{part}', expected *, numbers of {low} to {high}, ranges or steps"
    return None


@pytest.mark.parametrize(
    ("times", "is_right"),
    [
        ("15 2 * * *", True),
        ("*/5 0-6,12 1 1 7", True),
        ("60 2 * * *", False),
        ("15 2 * *", False),
        ("a 2 * * *", False),
        ("*/0 2 * * *", False),
    ],
)
def test_the_check_of_schedules(times: str, is_right: bool) -> None:
    assert (cron_problem(times) is None) == is_right


def check_command(words: list[str]) -> None:
    check_overrides("retrain", words)


def test_crontab() -> None:
    entries = [line for text in blocks("crontab") for line in text.splitlines() if line and not line.startswith("#")]
    assert len(entries) > 1
    for entry in entries:
        *times, command = entry.split(None, 5)
        assert cron_problem(" ".join(times)) is None
        # In a crontab a percent sign ends the command.
        assert "%" not in command
        words = shlex.split(command)
        begin = words.index(".venv/bin/recsys") + 1
        check_overrides(words[begin], words[begin + 1 : words.index(">>")])


def test_cron_job_of_kubernetes() -> None:
    (text,) = blocks("yaml")
    job: dict[str, Any] = yaml.safe_load(text)
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "CronJob")
    assert cron_problem(job["spec"]["schedule"]) is None
    # The lock of a model holds on one volume; two pods at a time would only wait for each other.
    assert job["spec"]["concurrencyPolicy"] == "Forbid"
    spec = job["spec"]["jobTemplate"]["spec"]
    # A candidate that was stopped or rolled back must not start the cycle again.
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]) == ("FailJob", {"operator": "In", "values": [3, 4]})
    pod = spec["template"]["spec"]
    # Kubernetes takes a podFailurePolicy with no other.
    assert pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    assert container["command"] == ["recsys", "retrain"]
    check_command(container["args"])
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert {volume["name"] for volume in pod["volumes"]} == {*mounted}
    kept = [word.partition("=")[2] for word in container["args"] if word.startswith(("store=", "folder="))]
    kept += [one["value"] for one in container["env"] if one["name"] == "RECSYS_CACHE"]
    assert len(kept) == 3
    assert all(place.startswith(mounted["state"] + "/") for place in kept)


def test_commands_of_the_document_compose() -> None:
    lines = re.findall(r"^    recsys retrain (.*)$", DOCUMENT, re.MULTILINE)
    assert len(lines) >= 4
    for line in lines:
        given = shlex.split(line, comments=True)
        check_command([word.replace("+experiment=NAME", "+experiment=recommended") for word in given])
