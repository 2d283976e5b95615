"""List, show, sign and delete releases, and move the aliases that point at them.

    recsys releases list [store=releases]              versions, newest first, with their aliases
    recsys releases show VERSION|ALIAS                 manifest of one release
    recsys releases alias production VERSION|ALIAS     point an alias at a release
    recsys releases rollback [production]              point it at the release before its last move
    recsys releases delete VERSION                     remove a release, and its collection of a vector database
    recsys releases keygen PATH                        write a key that signs, and PATH.pub, which proves signatures
    recsys releases sign VERSION sign_key=PATH         sign a release
    recsys releases verify VERSION require_signature=PATH.pub

The words are values of keys: `recsys releases delete VERSION` is `recsys releases action=delete version=VERSION`.
`json=true` prints JSON for programs. Every change of an alias is added to the history of the store. A release that an
alias points at, that a rollout under way needs or that one of `servers` has loaded is deleted only with `force=true`,
which removes those aliases.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from recsys.release.store import ReleaseStore

ACTIONS = ("list", "show", "alias", "rollback", "delete", "keygen", "sign", "verify")


def main(config: DictConfig) -> None:
    """Run one action.

    Raises:
        UserError: If the action is unknown, a key that it needs is missing, or the store refuses it.
    """
    import json
    from pathlib import Path

    from recsys.cli.preflight import absent
    from recsys.core.errors import UserError, nearest
    from recsys.release.store import ReleaseStore

    action, store = config.action, ReleaseStore(config.store)
    if action not in ACTIONS:
        raise UserError(f"action: found '{action}'{nearest(action, ACTIONS)}")
    if action == "keygen":
        return _make_key(config.path)
    if not store.root.is_dir():
        raise UserError(f"store: {absent(Path(config.store))}; `recsys index` publishes releases")
    if action in ("show", "alias", "delete", "sign", "verify") and config.version is None:
        operands = "ALIAS VERSION" if action == "alias" else "VERSION"
        raise UserError(f"version: missing, expected recsys releases {action} {operands}")
    version = None if config.version is None else str(config.version)
    if action == "list":
        rows = _rows(store)
        print(json.dumps(rows, indent=2)) if config.json else _print(rows, config.store)
    elif action == "show":
        _show(store, str(version), config.json)
    elif action == "sign":
        _sign(store, str(version))
    elif action == "verify":
        _, manifest = store.open(str(version))
        name = store.check_signature(manifest.version)
        signer = "no signature required" if name is None else f"signed by {name}"
        print(f"{manifest.version}: all files match, {signer}")
    elif action == "delete":
        _delete(store, str(version), config)
        print(f"deleted {version}")
    else:
        wanted = version if action == "alias" else _before(store, config.alias)
        store.set_alias(config.alias, str(wanted), why=config.why or f"recsys releases {action}")
        print(f"{config.alias} -> {store.aliases()[config.alias]}")
    return None


def _make_key(path: str | None) -> None:
    from pathlib import Path

    from recsys.core.errors import UserError
    from recsys.release.signing import make_key

    if path is None:
        raise UserError("path: missing, expected recsys releases keygen PATH")
    print(f"{path}: keep it secret, sign_key={path}\n{make_key(Path(path))}: require_signature={path}.pub")


def _sign(store: ReleaseStore, version: str) -> None:
    from recsys.core.errors import UserError
    from recsys.core.strict_json import read_bounded
    from recsys.release.manifest import MANIFEST
    from recsys.release.signing import SIGN_KEY, configured, sign
    from recsys.release.verification import verify_release

    if (key := configured(SIGN_KEY)) is None:
        raise UserError("sign_key: missing, expected recsys releases sign VERSION sign_key=PATH")
    folder = store.root / store.resolve(version)
    content = read_bounded(folder / MANIFEST)
    verify_release(folder)
    sign(folder, content, key=key)
    print(f"{folder.name}: signed")


def _delete(store: ReleaseStore, version: str, config: DictConfig) -> None:
    from recsys.core.errors import UserError
    from recsys.operations.rollout.admin import AdminClient
    from recsys.operations.rollout.state import RolloutStateFile
    from recsys.serving.gateway.remote_host import parse_address

    if not config.force:
        state = RolloutStateFile(store.root / "state/rollout.json")
        rollout = state.read()
        if rollout is not None and not rollout.is_finished and version in (rollout.version, rollout.previous):
            raise UserError(f"{state.path}: a rollout under way needs {version}; finish it, or force=true deletes it")
        for server in config.servers:
            if version in AdminClient(parse_address(server), config.admin_token).versions(None).loaded:
                raise UserError(f"servers: {server} has loaded {version}; force=true deletes it all the same")
    store.delete(version, force=config.force)


def _before(store: ReleaseStore, alias: str) -> str:
    """Return the release that the alias pointed at before its last move."""
    from recsys.core.errors import UserError

    aliases = store.aliases()
    if alias not in aliases:
        raise UserError(f"alias: {store.root} has no alias '{alias}'")
    left = [change["from"] for change in store.history() if change["alias"] == alias]
    if not left or left[-1] is None:
        raise UserError(f"alias: '{alias}' has pointed at {aliases[alias]} only; there is nothing to go back to")
    return str(left[-1])


def _rows(store: ReleaseStore) -> list[dict[str, Any]]:
    from recsys.release.manifest import Manifest

    aliases = store.aliases()
    rows = []
    for version in store.versions():
        manifest = Manifest.load(store.root / version)
        rows.append(
            {
                "version": version,
                "aliases": [alias for alias, target in aliases.items() if target == version],
                "model": manifest.model,
                "created": manifest.created,
                "items": manifest.num_items,
                "bytes": sum(entry.bytes for entry in manifest.files.values()),
            }
        )
    return sorted(rows, key=lambda row: (row["created"], row["version"]), reverse=True)


def _print(rows: list[dict[str, Any]], store: str) -> None:
    from rich.table import Table

    from recsys.core.screen import screen

    if not rows:
        return print(f"{store}: no releases")
    table = Table("version", "aliases", "model", "created")
    for title in ("items", "MB"):
        table.add_column(title, justify="right")
    for row in rows:
        numbers = f"{row['items']:,}", f"{row['bytes'] / 1e6:,.1f}"
        table.add_row(row["version"], " ".join(row["aliases"]), row["model"], row["created"], *numbers)
    return screen().print(table)


def _show(store: ReleaseStore, version: str, as_json: bool) -> None:
    import dataclasses
    import json

    folder, manifest = store.open(version)
    content = dataclasses.asdict(manifest)
    if as_json:
        return print(json.dumps(content, indent=2, default=str))
    aliases = [alias for alias, target in store.aliases().items() if target == manifest.version]
    shown = {"folder": folder, "aliases": " ".join(aliases) or "none"}
    shown |= {name: value for name, value in content.items() if not isinstance(value, dict | list | tuple)}
    for name, value in shown.items():
        print(f"{name}: {value}")
    for name, value in sorted(manifest.metrics.items()):
        if name.count("/") == 1 and name.endswith(("recall@10", "recall@100", "ndcg@10")):
            print(f"{name}: {value:.4f}")
    for name, entry in manifest.files.items():
        print(f"{name}: {entry.bytes:,} bytes, sha256 {entry.sha256}")
    return None
