"""Store of releases, which are published atomically, and of aliases that point at them. Imports no torch.

<version>/          one release, immutable, named by its content
aliases/<alias>     a small file with a version, replaced atomically
collections/        for each version, the address of the vector database that has its collection
history.jsonl       every change of an alias: when, alias, from, to, why
.tmp-*              releases that are being written
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from recsys.core.errors import UserError, nearest
from recsys.core.io import atomic_write, sync
from recsys.core.strict_json import read_bounded
from recsys.release.collections import drop_collection, move_record
from recsys.release.manifest import MANIFEST, Manifest, describe_files, version_of
from recsys.release.runtime.shard import CorpusShard
from recsys.release.signing import REQUIRE_SIGNATURE, SIGN_KEY, SIGNATURE, check_signature, configured, sign
from recsys.release.verification import verify_part, verify_release

_VERSION = re.compile(r"[0-9a-f]{16}")
_ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,63}")


class ReleaseStore:
    """Releases below one folder.

    Args:
        root: folder of the store; `publish` makes it.
        require_signature: public key, or folder of them, of which one must have signed what is opened; None for that
            of the environment (`require_signature=` of a command), if it has one.
    """

    def __init__(self, root: str | Path, *, require_signature: Path | None = None) -> None:
        self.root = Path(root)
        self._keys = configured(REQUIRE_SIGNATURE) if require_signature is None else require_signature

    def publish(
        self, write: Callable[[Path], Manifest], complete: Callable[[Path, Manifest], Manifest] | None = None
    ) -> str:
        """Let `write` fill a hidden folder, rename the folder to its version, and return the version.

        Equal content is not published twice. Leftovers of killed processes are removed. A key that is configured
        (`sign_key=` of a command) signs the release.

        Args:
            write: fills a folder and returns the manifest, whose version, time and files are set here. Files that a
                manifest without a version describes are not read again.
            complete: gets folder and manifest before the release appears, and returns the manifest to write.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        self._clean()
        aside = self.root / f".tmp-{uuid.uuid4().hex}"
        lock = FileLock(f"{aside}.lock")
        with lock:
            try:
                aside.mkdir()
                manifest = write(aside)
                files = describe_files(aside, {} if manifest.version else manifest.files)
                manifest = dataclasses.replace(manifest, version=version_of(files), created=_now(), files=files)
                if complete is not None:
                    manifest = complete(aside, manifest)
                manifest.save(aside)
                if (key := configured(SIGN_KEY)) is not None:
                    sign(aside, read_bounded(aside / MANIFEST), key=key)
                _finish(aside)
                self._move(aside, manifest)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
                Path(lock.lock_file).unlink(missing_ok=True)
        return manifest.version

    def adopt(self, folder: Path) -> str:
        """Publish a copy of a release from another folder, and return its version.

        Raises:
            UserError: If its files differ from its manifest.
        """
        manifest = verify_release(folder)

        def copy(aside: Path) -> Manifest:
            for name in manifest.files:
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / name, aside / name)
            return manifest

        move_record(folder.parent, self.root, manifest.version)
        version = self.publish(copy)
        if version != manifest.version:
            raise UserError(f"{folder}: changed while it was copied; expected version {manifest.version}")
        return version

    def _move(self, aside: Path, manifest: Manifest) -> None:
        folder = self.root / manifest.version
        if not folder.exists():
            try:
                os.rename(aside, folder)
                sync(self.root)
            except OSError:
                # Another process has published the same content meanwhile.
                if not folder.is_dir():
                    raise
        # The release is verified even if another process published it.
        published = verify_release(folder)
        if (key := configured(SIGN_KEY)) is not None and not (folder / SIGNATURE).exists():
            content = read_bounded(folder / MANIFEST)
            published = Manifest.parse(content, folder / MANIFEST)
            if dataclasses.replace(published, created=manifest.created) != manifest:
                raise UserError(
                    f"{folder}: was published with the same files, without a signature and with another manifest; "
                    "delete it, or sign it by `recsys releases sign`"
                )
            sign(folder, content, key=key)

    def _clean(self) -> None:
        """Remove leftovers of killed processes, which no process has locked."""
        for lock_file in self.root.glob(".tmp-*.lock"):
            try:
                with FileLock(lock_file, timeout=0):
                    shutil.rmtree(lock_file.with_suffix(""), ignore_errors=True)
                    lock_file.unlink(missing_ok=True)
            except Timeout:
                continue

    def versions(self) -> list[str]:
        """Published versions, by name."""
        if not self.root.is_dir():
            return []
        return sorted(path.name for path in self.root.iterdir() if _VERSION.fullmatch(path.name) and path.is_dir())

    def aliases(self) -> dict[str, str]:
        """Return alias -> version."""
        folder = self.root / "aliases"
        if not folder.is_dir():
            return {}
        found = [path for path in sorted(folder.iterdir()) if _ALIAS.fullmatch(path.name) and path.is_file()]
        return {path.name: self._read_alias(path) for path in found}

    def resolve(self, name: str, key: str = "release") -> str:
        """Return the version of `name`, which is a version or an alias.

        Args:
            name: version or alias.
            key: key that holds the name, for errors.

        Raises:
            UserError: If there is no such release.
        """
        if not self.root.is_dir():
            raise UserError(f"store: {self.root.absolute()} is not a folder; `recsys index` publishes releases")
        version = name
        if _ALIAS.fullmatch(name) and not _VERSION.fullmatch(name):
            path = self.root / "aliases" / name
            if not path.is_file():
                raise self._absent(name, f"{key}: {self.root} has no alias '{name}'")
            version = self._read_alias(path)
        if not _VERSION.fullmatch(version) or not (self.root / version).is_dir():
            raise self._absent(version, f"{key}: {self.root} has no release '{version}'")
        return version

    def _absent(self, name: str, message: str) -> UserError:
        valid = [*self.aliases(), *self.versions()]
        if not valid:
            return UserError(f"store: {self.root.absolute()} holds no releases; `recsys index` publishes them")
        close = nearest(name, valid)
        return UserError(message + (close if "valid:" in close else f"{close} valid: {', '.join(valid)}"))

    def open(self, name: str) -> tuple[Path, Manifest]:
        """Verify a release, and return its folder and manifest.

        Args:
            name: version or alias.

        Raises:
            UserError: If there is no such release, or it is damaged.
        """
        folder = self.root / self.resolve(name)
        return folder, verify_release(folder, keys=self._keys)

    def open_part(self, name: str, shard: CorpusShard) -> tuple[Path, Manifest] | None:
        """Verify the part of a release for a shard, and return its folder and manifest; None if there is no such part.

        Raises:
            UserError: If there is no such release, or what the host reads is damaged.
        """
        return verify_part(self.root / self.resolve(name), shard, keys=self._keys)

    def check_signature(self, name: str) -> str | None:
        """Return the key that signed a version or alias; None if no signature is required.

        Raises:
            UserError: If a signature is required, and none by a trusted key is there.
        """
        folder = self.root / self.resolve(name)
        if self._keys is None:
            return None
        return check_signature(folder, read_bounded(folder / MANIFEST), keys=self._keys)

    def set_alias(self, alias: str, version: str, *, why: str) -> None:
        """Point `alias` at `version`. If `production` moves, `previous` gets its former target.

        The history is written before the alias moves, so no change is missing from it.

        Raises:
            UserError: If the alias is not a valid name, there is no such release, or a required signature is missing.
        """
        self.check_alias(alias)
        version = self.resolve(version)
        self.check_signature(version)
        (self.root / "aliases").mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / ".aliases.lock"):
            current = self.aliases()
            if current.get(alias) == version:
                return
            if alias == "production" and alias in current:
                self._move_alias(
                    "previous", current.get("previous"), new=current[alias], why=f"production moved to {version}"
                )
            self._move_alias(alias, current.get(alias), new=version, why=why)

    def delete(self, version: str, *, force: bool = False) -> None:
        """Remove a release, and its collection of a vector database.

        A reader sees the whole release or none, and a crash leaves nothing that stays for ever.

        Args:
            version: version, not an alias.
            force: remove the aliases that point at the release, too.

        Raises:
            UserError: If there is no such release, an alias points at it, or its collection cannot be dropped.
        """
        if not _VERSION.fullmatch(version):
            raise UserError(f"version: found '{version}', expected a version of {self.root}, not an alias")
        self.resolve(version)
        self._clean()
        with FileLock(self.root / ".aliases.lock"):
            holders = [alias for alias, target in self.aliases().items() if target == version]
            if holders and not force:
                raise UserError(
                    f"release: the alias '{holders[0]}' points at {version}; move it before deleting, or force=true "
                    "removes it"
                )
            drop_collection(self.root, version, force=force)
            for alias in holders:
                self._append({"when": _now(), "alias": alias, "from": version, "to": None, "why": "release deleted"})
                (self.root / "aliases" / alias).unlink()
            # The next writer of the store removes what a killed process leaves, by its lock.
            aside = self.root / f".tmp-{uuid.uuid4().hex}"
            with FileLock(f"{aside}.lock") as lock:
                os.rename(self.root / version, aside)
                sync(self.root)
                shutil.rmtree(aside)
                Path(lock.lock_file).unlink(missing_ok=True)

    def history(self) -> list[dict[str, Any]]:
        """Return all changes of aliases, oldest first."""
        path = self.root / "history.jsonl"
        if not path.exists():
            return []
        changes = []
        for line in path.read_bytes().splitlines():
            # A crash truncates the last line, whose change was not made.
            with contextlib.suppress(ValueError, RecursionError):
                change = json.loads(line)
                if isinstance(change, dict) and "alias" in change:
                    changes.append(change)
        return changes

    def _move_alias(self, alias: str, old: str | None, *, new: str, why: str) -> None:
        if old == new:
            return
        self._append({"when": _now(), "alias": alias, "from": old, "to": new, "why": why})
        atomic_write(self.root / "aliases" / alias, new + "\n")

    def _append(self, change: dict[str, Any]) -> None:
        descriptor = os.open(self.root / "history.jsonl", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            os.write(descriptor, (b"\n" if torn else b"") + json.dumps(change).encode() + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def check_alias(self, alias: str) -> None:
        """Refuse a text that is not a valid name of an alias.

        Raises:
            UserError: If it has characters that an alias cannot have, or looks like a version.
        """
        if not _ALIAS.fullmatch(alias) or _VERSION.fullmatch(alias):
            raise UserError(
                f"alias: found '{alias}', expected a lower-case name such as candidate (letters, digits, - and _)"
            )

    def _read_alias(self, path: Path) -> str:
        try:
            version = path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not an alias ({error})") from error
        if not _VERSION.fullmatch(version):
            raise UserError(f"{path}: damaged, expected the version of a release")
        return version


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _finish(folder: Path) -> None:
    """Make all files read-only, and wait until files and folders have reached the disk."""
    for path in folder.rglob("*"):
        if not path.is_dir():
            path.chmod(0o444)
        sync(path)
    sync(folder)
