"""Where a served version comes from, and when it was served: from files alone, whatever else is online or gone.

version -> index, user tower, item tower (digests) -> run folder, configuration -> data, commit; and `history.jsonl`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from recsys.core.errors import UserError
from recsys.experiments.run_folder import read_state
from recsys.operations.gates.verdict import VERDICT, Verdict
from recsys.release.manifest import CONFIG, Manifest, describe_file
from recsys.release.store import ReleaseStore
from recsys.release.verification import verify_release

# Files of each half, by how their names begin.
_PARTS = {"user tower": "user_tower.", "item tower": "item_tower.", "index": "item_index.", "embeddings": "item_embed"}


@dataclass(frozen=True)
class Served:
    """A time in which an alias pointed at the version.

    Attributes:
        alias: such as `production`.
        since, until: UTC, ISO 8601; `until` is None while it still does.
        why: what the change was told to be for.
    """

    alias: str
    since: str
    until: str | None
    why: str


@dataclass(frozen=True)
class Lineage:
    """Everything that a version is made of.

    Attributes:
        version, model, created, pair: as the manifest says.
        sound: whether every file is what the manifest says; else what is wrong.
        parts: user tower, item tower, index, embeddings -> file -> sha256.
        index: its class, and its recall against exact search.
        run: folder, and whether it is there; what is known of it; `same_config`: whether its configuration is still the
            one that the release holds.
        config_sha256: of the configuration in the release, which stays when the run is gone.
        data: fingerprint, and times of first and last events.
        git_commit: of the code; `+` for uncommitted changes.
        verdict: of the gates, where they judged the run.
        served: every time in which an alias pointed at it, oldest first.
    """

    version: str
    model: str
    created: str
    sound: str
    pair: str
    parts: dict[str, dict[str, str]]
    index: dict[str, Any]
    run: dict[str, Any]
    config_sha256: str
    data: dict[str, Any]
    git_commit: str | None
    verdict: dict[str, Any] | None
    served: tuple[Served, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain containers."""
        return asdict(self)

    def print(self, console: Console | None = None) -> None:
        """What a person wants to know, from the version downwards."""
        table = Table("version", self.version, title_justify="left", show_lines=False)
        table.columns[1].overflow = "fold"
        table.add_row("files", self.sound)
        table.add_row("model", f"{self.model}, released {self.created}")
        for part, files in self.parts.items():
            table.add_row(part, "\n".join(f"{sha[:16]}  {name}" for name, sha in files.items()))
        table.add_row("pair", self.pair)
        table.add_row("index", ", ".join(f"{name} {value}" for name, value in self.index.items()))
        table.add_row("run", "\n".join(f"{name}: {value}" for name, value in self.run.items()))
        table.add_row("config", f"{self.config_sha256[:16]}  {CONFIG}")
        table.add_row("data", "\n".join(f"{name}: {value}" for name, value in self.data.items()))
        table.add_row("commit", self.git_commit or "unknown: not run from a checkout")
        if self.verdict is None:
            table.add_row("gates", "no verdict on this run")
        else:
            against = self.verdict["against"] or "nothing: none was served"
            table.add_row("gates", f"{self.verdict['summary']} (against {against})")
        for one in self.served:
            until = "now" if one.until is None else one.until
            table.add_row(f"as {one.alias}", f"{one.since} to {until}: {one.why}")
        if not self.served:
            table.add_row("served", "never: no alias has pointed at it")
        (console or Console()).print(table)


def lineage(store: ReleaseStore, name: str) -> Lineage:
    """What a version (or the one that an alias points at) is made of.

    A release that is damaged is told as damaged: what its manifest says may still help.

    Raises:
        UserError: there is no such release, or its manifest cannot be read.
    """
    version = store.resolve(name)
    folder = store.root / version
    manifest = Manifest.load(folder)
    try:
        verify_release(folder)
        sound = "all as the manifest says"
    except UserError as error:
        sound = f"damaged: {error}"
    digests = {name: entry.sha256 for name, entry in sorted(manifest.files.items())}
    config = digests[CONFIG]
    return Lineage(
        version=version,
        model=manifest.model,
        created=manifest.created,
        sound=sound,
        pair=manifest.pair,
        parts={part: {n: d for n, d in digests.items() if n.startswith(begin)} for part, begin in _PARTS.items()},
        index={name: manifest.index[name] for name in ("class", "recall") if name in manifest.index},
        run=_run(Path(manifest.run), manifest, config),
        config_sha256=config,
        data=_data(manifest),
        git_commit=manifest.git_commit,
        verdict=_verdict(Path(manifest.run), version),
        served=tuple(served_times(store.history(), version)),
    )


def served_times(history: list[dict[str, Any]], version: str) -> list[Served]:
    """When each alias pointed at the version, from the changes of all aliases, oldest first."""
    times: list[Served] = []
    for number, change in enumerate(history):
        if change["to"] != version:
            continue
        later = (c["when"] for c in history[number + 1 :] if c["alias"] == change["alias"])
        times.append(Served(change["alias"], change["when"], next(later, None), change["why"]))
    return times


def _run(path: Path, manifest: Manifest, config: str) -> dict[str, Any]:
    known: dict[str, Any] = {"folder": str(path), "there": path.is_dir()}
    if not known["there"]:
        return known | {"note": "the folder is gone; configuration, weights and metrics are in the release"}
    checkpoint, stored = path / "checkpoints/best.ckpt", path / "config.yaml"
    if checkpoint.exists():
        known["checkpoint_sha256"] = describe_file(checkpoint).sha256
    known["same_config"] = stored.exists() and describe_file(stored).sha256 == config
    try:
        state = read_state(path)
    except UserError:
        return known | {"note": "run.json is missing or damaged"}
    known |= {name: value for name, value in state.to_json().items() if name in ("status", "steps", "seconds")}
    known["same_data"] = state.dataset_fingerprint == manifest.dataset_fingerprint
    if logged := sorted(folder.name for folder in path.glob("wandb/*run-*") if folder.is_dir()):
        known["wandb"] = logged[-1].rsplit("-", 1)[-1]
    return known


def _data(manifest: Manifest) -> dict[str, Any]:
    times = {name: _moment(seconds) for name, seconds in manifest.data.items()}
    return {"fingerprint": manifest.dataset_fingerprint, **times}


def _moment(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        # Of another unit than seconds.
        return f"{seconds} s, which is no date"


def _verdict(run: Path, version: str) -> dict[str, Any] | None:
    try:
        verdict = Verdict.load(run / VERDICT)
    except (OSError, ValueError, TypeError):
        return None
    if verdict.candidate != version:
        return None
    return {"passed": verdict.passed, "against": verdict.against, "summary": verdict.summary(), "when": verdict.created}
