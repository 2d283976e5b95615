"""Traces a release to its origin and lists the times when it was served. Reads only files.

version -> index, user tower, item tower (digests) -> run folder, configuration -> data, commit; and `history.jsonl`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from recsys.core.errors import UserError
from recsys.core.schema import Schema
from recsys.experiments.run_folder import read_state
from recsys.operations.gates.verdict import VERDICT, Verdict
from recsys.release.manifest import CONFIG, SCHEMA, Manifest, describe_file
from recsys.release.store import ReleaseStore
from recsys.release.verification import verify_release

# Part of a release -> prefix of its files.
_PARTS = {"user tower": "user_tower.", "item tower": "item_tower.", "index": "item_index.", "embeddings": "item_embed"}


@dataclass(frozen=True)
class AliasPeriod:
    """Period in which an alias pointed at the version, in UTC, with the reason of the change; `until` may be open."""

    alias: str
    since: str
    until: str | None
    why: str


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """Origin of a release, and the times when it was served.

    Attributes:
        version, model, created, pair: values of the manifest.
        sound: result of the verification of all files.
        parts: user tower, item tower, index, embeddings -> file -> sha256.
        index: class of the index, and its recall against exact search.
        run: folder of the run, whether it exists, and the contents of its files; `same_config` is true if its
            configuration equals the one in the release.
        config_sha256: digest of the configuration in the release, which remains if the run is removed.
        data: fingerprint, times of the first and last events, and models of content with their digests.
        git_commit: commit of the code; `+` marks uncommitted changes.
        verdict: verdict of the gates on the run; None if there is none.
        refreshed: version that was refreshed, data, and time of the index; empty if the index is of the run's own data.
        served: periods in which an alias pointed at the release, oldest first.
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
    refreshed: dict[str, Any]
    served: tuple[AliasPeriod, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain containers."""
        return asdict(self)


def lineage(store: ReleaseStore, name: str) -> Lineage:
    """Return the lineage of a release.

    A damaged release is reported as damaged, because its manifest may still help.

    Raises:
        UserError: If there is no such release, or its manifest cannot be read.
    """
    version = store.resolve(name)
    folder = store.root / version
    manifest = Manifest.load(folder)
    try:
        verify_release(folder)
        sound = "all files match the manifest"
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
        data=_data(manifest, folder),
        git_commit=manifest.git_commit,
        verdict=_verdict(Path(manifest.run), version, folder=manifest.refreshed.get("folder")),
        refreshed=_refreshed(manifest),
        served=tuple(served_times(store.history(), version)),
    )


def served_times(history: list[dict[str, Any]], version: str) -> list[AliasPeriod]:
    """Return the periods in which an alias pointed at the version, oldest first, from the changes of all aliases."""
    times: list[AliasPeriod] = []
    for number, change in enumerate(history):
        if change["to"] != version:
            continue
        later = (c["when"] for c in history[number + 1 :] if c["alias"] == change["alias"])
        times.append(AliasPeriod(change["alias"], change["when"], next(later, None), change["why"]))
    return times


def _run(path: Path, manifest: Manifest, config: str) -> dict[str, Any]:
    known: dict[str, Any] = {"folder": str(path), "there": path.is_dir()}
    if not known["there"]:
        return known | {"note": "the folder is missing; configuration, weights and metrics are in the release"}
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


def _data(manifest: Manifest, folder: Path) -> dict[str, Any]:
    times = {name: _moment(seconds) for name, seconds in manifest.data.items()}
    try:
        features = Schema.load(folder / SCHEMA).features
    except UserError:
        # The release is damaged, which `sound` says.
        features = ()
    encoders = {f.key: f"{f.encoder} ({f.encoder_digest})" for f in features if f.encoder}
    found = {"fingerprint": manifest.dataset_fingerprint, **times}
    return found | {f"encoder of {key}": model for key, model in encoders.items()}


def _refreshed(manifest: Manifest) -> dict[str, Any]:
    known = {name: value for name, value in manifest.refreshed.items() if name in ("from", "data")}
    if "now" in manifest.index_time:
        known |= {"now": _moment(int(manifest.index_time["now"])), "horizon_days": manifest.index_time["horizon_days"]}
    return known if manifest.refreshed else {}


def _moment(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        # The times of the data are not in seconds.
        return f"{seconds} s, which is not a date"


def _verdict(run: Path, version: str, *, folder: str | None) -> dict[str, Any] | None:
    # Pruning moves the verdict out of the run that it removes. That of a refresh lies in the folder of refreshes.
    places = [run, run.parent] if folder is None else [Path(folder) / "verdicts" / version]
    path = next((place / VERDICT for place in places if (place / VERDICT).exists()), run / VERDICT)
    try:
        verdict = Verdict.load(path)
    except (OSError, ValueError):
        return None
    if verdict.candidate != version:
        return None
    accepted = next((one.accepted for one in (verdict, *reversed(verdict.former)) if one.accepted), None)
    return {
        "passed": verdict.passed,
        "against": verdict.against,
        "summary": verdict.summary(),
        "when": verdict.created,
        "accepted": None if accepted is None else asdict(accepted),
    }
