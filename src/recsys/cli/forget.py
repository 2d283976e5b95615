"""Erase users from what servers keep, and keep them out of later backfills and trainings.

    recsys forget USER [USER ...] [store=releases]               opens the files, whether a server runs or not
    recsys forget users=FILE                                     all users of a file
    recsys forget USER servers=[127.0.0.1:8080]                  through the admin calls of running gateways

The command searches the files for the users afterwards and prints what it found; it exits with 1 if anything remains.
It can be repeated, also after it was interrupted. The list `suppressed` keeps hashes of the users. Data folders, runs,
releases, prepared data sets, logs and copies of files are not changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from recsys.serving.events import UserId
    from recsys.serving.forgetting import Forgotten

# Users of one call of a server.
_AT_ONCE = 1000
_UNCHANGED = "not changed: data folders, prepared data sets, runs, releases, logs, and copies of files"


def main(config: DictConfig) -> None:
    """Erase the users, and print the proof.

    Raises:
        UserError: If no user is named, or the store or a server cannot be used.
        SystemExit: If a file still names a user.
    """
    import json

    users = _users(config)
    found = _on_servers(config, users) if config.servers else {"": _here(config, users)}
    if config.json:
        rows = [{"server": server or None, **_plain(one)} for server, one in found.items()]
        print(json.dumps(rows, indent=2))
    else:
        for server, one in found.items():
            _print(f"{server}: " if server else "", one)
        print(_UNCHANGED)
    if remaining := sum(one.found for one in found.values()):
        raise SystemExit(f"error: {remaining} places still name a user; the lines above name the files")


def _users(config: DictConfig) -> list[UserId]:
    from pathlib import Path

    from recsys.core.errors import UserError
    from recsys.serving.events.incoming import check_user

    given = [config.user] if isinstance(config.user, str | int) else list(config.user or ())
    if bool(given) == (config.users is not None):
        raise UserError("user: expected recsys forget USER, or users=FILE" + (", not both" if given else ""))
    if config.users is None:
        return [check_user(user, "user") for user in given]
    path = Path(config.users)
    if not path.is_file():
        raise UserError(f"users: {path}: no such file")
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        table = pq.read_table(path)
        if "user_id" not in table.column_names:
            raise UserError(f"{path}: found columns {', '.join(table.column_names)}, expected user_id")
        given = table["user_id"].to_pylist()
    else:
        lines = path.read_text("utf-8").splitlines()
        given = [line for line in lines if line and line != "user_id"]
    if not given:
        raise UserError(f"{path}: found no users")
    return [check_user(user, f"{path}: row {number}") for number, user in enumerate(given)]


def _here(config: DictConfig, users: list[UserId]) -> Forgotten:
    from pathlib import Path

    from recsys.core.errors import UserError
    from recsys.core.suppression import SuppressionList
    from recsys.serving.events import StoreError, open_store
    from recsys.serving.forgetting import forget
    from recsys.serving.impressions import open_impressions

    is_file, samples = "://" not in config.events, Path(config.samples)
    if is_file and not Path(config.events).exists() and not samples.exists() and not Path(config.store).is_dir():
        raise UserError(f"store: {config.store}: no such folder; events= and samples= name the files of a server")
    listed, store, impressions = SuppressionList(config.suppressed), None, None
    try:
        # A store that is made later learns from the list whom it has to forget.
        if not is_file or Path(config.events).exists():
            store, impressions = open_store(config.events), open_impressions(config.events)
        return forget(users, suppressed=listed, store=store, samples=samples, impressions=impressions)
    except StoreError as error:
        raise UserError(f"{error}; the users are on {config.suppressed}, and the command can be repeated") from error
    finally:
        for opened in (store, impressions):
            if opened is not None:
                opened.close()


def _on_servers(config: DictConfig, users: list[UserId]) -> dict[str, Forgotten]:
    from recsys.core.suppression import SuppressionList, hash_of
    from recsys.operations.rollout.admin import AdminClient
    from recsys.serving.events.event_store import Searched
    from recsys.serving.forgetting import Forgotten
    from recsys.serving.gateway.remote_host import parse_address

    # Trainings of this machine read the list; servers keep their own.
    SuppressionList(config.suppressed).add(sorted({hash_of(user) for user in users}))
    found: dict[str, Forgotten] = {}
    for server in [config.servers] if isinstance(config.servers, str) else config.servers:
        client = AdminClient(parse_address(server), config.admin_token)
        parts = [client.forget(users[begin : begin + _AT_ONCE]) for begin in range(0, len(users), _AT_ONCE)]
        numbers = ("users", "histories", "profiles", "samples")
        listed = [part.listed for part in parts]
        sums = {name: sum(getattr(part, name) for part in parts) for name in numbers}
        searched = [Searched(one.place, one.bytes, one.found) for part in parts for one in part.searched]
        found[server] = Forgotten(
            **sums, listed=None if None in listed else sum(one or 0 for one in listed), searched=searched
        )
    return found


def _print(prefix: str, found: Forgotten) -> None:
    listed = "the list could not be written" if found.listed is None else f"{found.listed} new on the list"
    print(
        f"{prefix}forgot {found.users} users ({listed}): removed {found.histories} histories, "
        f"{found.profiles} profiles, {found.samples} request samples"
    )
    for one in found.searched:
        print(f"{prefix}searched {one.place} ({one.bytes:,} bytes): {one.found or 'nothing'} found")


def _plain(found: Forgotten) -> dict[str, object]:
    return {**found._asdict(), "searched": [one._asdict() for one in found.searched], "found": found.found}
