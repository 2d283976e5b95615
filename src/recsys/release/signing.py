"""Signatures of releases: an operator's Ed25519 key signs the manifest, which names every file by its digest.

A digest proves only that a release agrees with itself; a signature proves whose it is. Keys are PEM files, as openssl
writes them. `manifest.sig` has one line for each key that signed. Imports no torch.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import TYPE_CHECKING

from recsys.core.errors import UserError
from recsys.core.io import atomic_write, open_plain

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE = "manifest.sig"
# Environment of this process and its children: the key that signs, and the public key, or folder of them, to require.
SIGN_KEY, REQUIRE_SIGNATURE = "RECSYS_SIGN_KEY", "RECSYS_REQUIRE_SIGNATURE"
_CONTEXT = b"recsys release 1\n"
_MAX_BYTES = 64 << 10


def configured(name: str) -> Path | None:
    """Return the path that the environment has for `SIGN_KEY` or `REQUIRE_SIGNATURE`; None without one."""
    return Path(os.environ[name]) if os.environ.get(name) else None


def make_key(path: Path) -> Path:
    """Write a new private key, readable by its owner only, and its public key beside it; return the latter's path.

    Raises:
        UserError: If one of the files exists.
    """
    _need_library()
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key, public = Ed25519PrivateKey.generate(), path.with_name(f"{path.name}.pub")
    private = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    shown = key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    for place, content, mode in ((path, private, 0o600), (public, shown, 0o644)):
        try:
            descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        except FileExistsError as error:
            raise UserError(f"{place}: exists already; a key is never replaced") from error
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    return public


def sign(folder: Path, manifest: bytes, *, key: Path) -> None:
    """Add the signature of a key over the content of the manifest to a release, beside those of other keys.

    Raises:
        UserError: If the key cannot be read.
    """
    private = _private_key(key)
    name = _name(private.public_key())
    lines = [line for line in _lines(folder) if line.split()[1:2] != [name]]
    lines.append(f"ed25519 {name} {base64.b64encode(private.sign(_CONTEXT + manifest)).decode()}")
    atomic_write(folder / SIGNATURE, "\n".join(lines) + "\n")


def check_signer() -> None:
    """Check, before the work that leads to a release, that it will be signed by a key that is trusted.

    Raises:
        UserError: If `require_signature` is configured without `sign_key`, or the key is not one of the trusted.
    """
    key, trusted = configured(SIGN_KEY), configured(REQUIRE_SIGNATURE)
    if key is None and trusted is not None:
        raise UserError(f"sign_key: missing, and require_signature={trusted} expects that the new release is signed")
    if key is None:
        return
    name = _name(_private_key(key).public_key())
    if trusted is not None and name not in [_name(public) for public in _public_keys(trusted)]:
        raise UserError(f"sign_key: {key} signs as {name}, which is not one of require_signature={trusted}")


def check_signature(folder: Path, manifest: bytes, *, keys: Path) -> str:
    """Return the name of the trusted key that signed the content of a manifest.

    Args:
        folder: folder of the release.
        manifest: content of its `manifest.json`.
        keys: a public key, or a folder of public keys (`*.pem`, `*.pub`).

    Raises:
        UserError: If no trusted key signed it.
    """
    from_name = {_name(key): key for key in _public_keys(keys)}
    path, found = folder / SIGNATURE, []
    for line in _lines(folder):
        kind, name, text = [*line.split(), "", "", ""][:3]
        found.append(name)
        if kind == "ed25519" and name in from_name:
            if _fits(from_name[name], text, _CONTEXT + manifest):
                return name
            raise UserError(f"{path}: the signature of key {name} is not of this manifest: one of both was changed")
    if not found:
        raise UserError(
            f"{path}: missing, and require_signature={keys} expects one; whoever trusts the release adds it by "
            f"`recsys releases sign {folder.name} sign_key=PRIVATE_KEY`"
        )
    signers, trusted = ", ".join(found)[:200], ", ".join(from_name)[:200]
    raise UserError(f"{path}: found signatures of {signers}, expected one of {trusted} (require_signature={keys})")


def _lines(folder: Path) -> list[str]:
    path = folder / SIGNATURE
    try:
        with open_plain(path) as file:
            content = file.read(_MAX_BYTES + 1)
        lines = content.decode("ascii").split("\n")
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: damaged, expected lines of signatures ({error})") from error
    if len(content) > _MAX_BYTES:
        raise UserError(f"{path}: found more than {_MAX_BYTES} bytes, expected lines of signatures")
    return [line for line in lines if line.strip()]


def _fits(key: Ed25519PublicKey, text: str, content: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(base64.b64decode(text, validate=True), content)
    except (InvalidSignature, ValueError):
        return False
    return True


def _name(key: Ed25519PublicKey) -> str:
    return base64.b64encode(key.public_bytes_raw()).decode()


def _private_key(path: Path) -> Ed25519PrivateKey:
    _need_library()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    expected = "an Ed25519 private key without a password, as `recsys releases keygen PATH` writes it"
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"sign_key: {path} cannot be read ({_reason(error)}), expected {expected}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"sign_key: {path} holds another kind of key, expected {expected}")
    return key


def _public_keys(path: Path) -> list[Ed25519PublicKey]:
    _need_library()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    files = sorted(file for file in path.iterdir() if file.suffix in (".pem", ".pub")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"require_signature: {path} holds no public keys (*.pem, *.pub)")
    found = []
    for file in files:
        try:
            key = load_pem_public_key(file.read_bytes())
        except (OSError, ValueError) as error:
            reason = _reason(error)
            raise UserError(f"require_signature: {file} cannot be read ({reason}), expected a public key") from error
        if not isinstance(key, Ed25519PublicKey):
            raise UserError(f"require_signature: {file} holds another kind of key, expected an Ed25519 public key")
        found.append(key)
    return found


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).splitlines()[0][:200]


def _need_library() -> None:
    try:
        import cryptography  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(
            "signatures need the package 'cryptography', which is not installed: pip install 'recsys[serving]'"
        ) from error
