"""Signatures: whose a release is, from publishing to opening."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from forging import TINY, copy_release, edit_manifest, seal

import recsys
from recsys.cli.commands import COMMANDS
from recsys.cli.entry import run_command
from recsys.core.errors import UserError
from recsys.release.signing import REQUIRE_SIGNATURE, SIGN_KEY, SIGNATURE, check_signer, make_key, sign
from recsys.release.store import ReleaseStore
from recsys.serving.host.host import Host
from recsys.serving.host.releases import ReleaseCache


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Private keys of the operator and of another one; the public ones are beside them."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("mine", "other"):
        make_key(folder / name)
    return folder / "mine", folder / "other"


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return copy_release(TINY, tmp_path / "store")


def public(key: Path) -> Path:
    return key.with_name(f"{key.name}.pub")


def signed(folder: Path, *by: Path) -> None:
    for key in by:
        sign(folder, (folder / "manifest.json").read_bytes(), key=key)


def opened(folder: Path, keys: Path | None) -> None:
    ReleaseStore(folder.parent, require_signature=keys).open(folder.name)


def test_a_signed_release_opens_with_its_key(release: Path, keys: tuple[Path, Path]) -> None:
    mine, other = keys
    opened(release, None)
    signed(release, mine)
    opened(release, None)
    opened(release, public(mine))
    opened(release, mine.parent)
    with pytest.raises(UserError, match="expected one of"):
        opened(release, public(other))
    # A key is added beside the others, and replaces only its own signature.
    signed(release, other, other)
    assert len((release / SIGNATURE).read_text().splitlines()) == 2
    opened(release, public(other))
    opened(release, public(mine))
    assert mine.stat().st_mode & 0o777 == 0o600


def test_every_reader_requires_the_signature(
    release: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, version = release.parent, release.name
    monkeypatch.setenv(REQUIRE_SIGNATURE, str(public(keys[0])))
    tried: list[Path] = []
    for call in (
        lambda: recsys.load_release(version, store=store),
        lambda: Host(ReleaseCache(store, tried.append), "host").load(version),
        lambda: ReleaseStore(store).set_alias("production", version, why="test"),
    ):
        with pytest.raises(UserError, match=r"manifest.sig: missing.*recsys releases sign"):
            call()
    assert not tried
    signed(release, keys[0])
    recsys.load_release(version, store=store)
    monkeypatch.delenv(REQUIRE_SIGNATURE)
    with pytest.raises(UserError, match="expected one of"):
        recsys.load_release(version, store=store, require_signature=public(keys[1]))


@pytest.mark.parametrize("content", ["", "\n", "ed25519\n", "rsa a b\n", "\xff", "x" * 70_000])
def test_other_content_is_no_signature(release: Path, keys: tuple[Path, Path], content: str) -> None:
    (release / SIGNATURE).write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match="manifest.sig"):
        opened(release, public(keys[0]))


def test_a_signature_is_of_one_manifest(release: Path, keys: tuple[Path, Path]) -> None:
    signed(release, keys[0])
    line = (release / SIGNATURE).read_text()
    edit_manifest(release, model="another")
    with pytest.raises(UserError, match="is not of this manifest"):
        opened(release, public(keys[0]))
    (release / "config.yaml").write_text("{}\n")
    forged = seal(release)
    (forged / SIGNATURE).write_text(line)
    with pytest.raises(UserError, match="is not of this manifest"):
        opened(forged, public(keys[0]))


def test_publishing_signs(
    release: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(SIGN_KEY, str(keys[0]))
    store = ReleaseStore(tmp_path / "published", require_signature=public(keys[0]))
    version = store.adopt(release)
    store.open(version)
    # Content that was published without a signature is signed when it is published again, unless it differs.
    (store.root / version / SIGNATURE).unlink()
    store.adopt(release)
    store.open(version)
    (store.root / version / SIGNATURE).unlink()
    (store.root / version / "manifest.json").chmod(0o644)
    edit_manifest(store.root / version, model="another")
    with pytest.raises(UserError, match="another manifest"):
        store.adopt(release)


def test_a_release_that_could_not_be_served_is_not_begun(
    keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_signer()
    monkeypatch.setenv(REQUIRE_SIGNATURE, str(public(keys[0])))
    with pytest.raises(UserError, match="sign_key: missing"):
        check_signer()
    monkeypatch.setenv(SIGN_KEY, str(keys[1]))
    with pytest.raises(UserError, match="not one of require_signature"):
        check_signer()
    monkeypatch.setenv(SIGN_KEY, str(keys[0]))
    check_signer()


def test_wrong_keys_are_named(release: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    mine, _ = keys
    (tmp_path / "text").write_text("no key")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="sign_key: .*text cannot be read"):
        signed(release, tmp_path / "text")
    with pytest.raises(UserError, match="sign_key: .*mine.pub cannot be read"):
        signed(release, public(mine))
    signed(release, mine)
    for path, message in (("absent", "No such file"), ("text", "cannot be read"), ("empty", "no public keys")):
        with pytest.raises(UserError, match=f"require_signature: .*{message}"):
            opened(release, tmp_path / path)
    with pytest.raises(UserError, match="exists already"):
        make_key(mine)


def test_the_command_makes_keys_signs_and_verifies(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (SIGN_KEY, REQUIRE_SIGNATURE):
        monkeypatch.setenv(name, "")
    key, store = tmp_path / "key", f"store={release.parent}"

    def command(*words: str) -> str:
        run_command(COMMANDS["releases"], [*words, store])
        return capsys.readouterr().out

    assert f"{key}.pub" in command("keygen", str(key))
    with pytest.raises(SystemExit):
        command("verify", release.name, f"require_signature={key}.pub")
    assert "missing" in capsys.readouterr().err
    assert "signed" in command("sign", release.name, f"sign_key={key}")
    assert "signed by" in command("verify", release.name, f"require_signature={key}.pub")
    assert json.loads((release / "manifest.json").read_text())["version"] == release.name
