"""Settings of a server. Imports no torch."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recsys.core.errors import UserError
from recsys.core.suppression import NAME
from recsys.index.vector_database import VectorDatabase, is_database, open_database
from recsys.release.runtime.shard import CorpusShard
from recsys.serving.host.releases import ReleaseCache, try_once
from recsys.serving.http.access import Access, check_token, is_loopback
from recsys.serving.tls import TLS

ROLES = ("all", "host", "gateway")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of one server; `conf/serve.yaml` describes each."""

    role: str
    release: str | None
    store: str
    model: str | None
    host: str
    port: int
    workers: int
    drain_seconds: float
    towers: int
    follow_seconds: float
    hosts: Sequence[str] | None
    shards: Sequence[Sequence[str]] | None
    shard: str | None
    changes: str
    monitor: float
    events: str
    max_events: int
    samples: str
    samples_share: float
    samples_bytes: int
    page: bool | None
    admin_token: str | None
    read_token: str | None = None
    events_token: str | None = None
    host_token: str | None = None
    access_hosts: Sequence[str] | None = None
    access_origins: Sequence[str] = ()
    access_users: bool = True
    k: int
    history: int
    batch: int
    body_bytes: int
    log_level: str
    cost: int = 250_000
    queue_seconds: float = 0.2
    connections: int = 10_000
    request_seconds: float = 10.0
    header_bytes: int = 32 << 10
    tls: TLS = TLS()
    admin_port: int | None = None
    admin_host: str | None = None
    suppressed: str | None = None
    max_age_days: float | None = None
    store_seconds: float = 1.0
    load_seconds: float = 600.0
    impressions_share: float = 1.0
    impressions_hours: float = 168.0
    impressions_bytes: int = 256 << 20
    outcomes_window_hours: float = 24.0
    trial_seconds: float | None = None
    trial_bytes: int | None = None
    verify_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise UserError(f"role: found {self.role}, expected one of {', '.join(ROLES)}")
        tokens = {"tokens.read": self.read_token, "tokens.events": self.events_token, "tokens.host": self.host_token}
        for place, token in {"admin_token": self.admin_token, **tokens}.items():
            check_token(place, token)
            if token is not None and place in tokens and token == self.admin_token:
                raise UserError(
                    f"{place}: found the admin_token, expected a token of its own: it would allow admin calls"
                )
        for name in ("workers", "towers", "k", "history", "batch", "body_bytes", "cost", "connections"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: found {getattr(self, name)}, expected at least 1")
        for name in ("queue_seconds", "request_seconds", "store_seconds", "load_seconds"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name}: found {getattr(self, name)}, expected more than 0")
        if not 0 <= self.impressions_share <= 1:
            raise UserError(f"impressions.share: found {self.impressions_share}, expected a share from 0 to 1")
        if self.impressions_bytes < 1 << 20:
            raise UserError(f"impressions.bytes: found {self.impressions_bytes}, expected at least {1 << 20}")
        if not 0 < self.outcomes_window_hours <= self.impressions_hours:
            raise UserError(
                f"outcomes.window_hours: found {self.outcomes_window_hours:g}, expected more than 0 and at most "
                f"impressions.keep_hours={self.impressions_hours:g}, because outcomes join to what is kept"
            )
        optional = {"trial.seconds": self.trial_seconds, "trial.bytes": self.trial_bytes}
        optional |= {"verify_seconds": self.verify_seconds, "max_age_days": self.max_age_days}
        for name, value in optional.items():
            if value is not None and value <= 0:
                raise UserError(f"{name}: found {value}, expected more than 0, or null")
        if self.admin_port is not None and (self.admin_token is None or 0 < self.admin_port == self.port):
            raise UserError(
                f"admin.port: found {self.admin_port} with port={self.port}, expected another one, and an admin_token"
            )
        if self.admin_host is not None and self.admin_port is None:
            raise UserError(f"admin.host: found {self.admin_host} without admin.port, expected both")
        if self.workers > 1 and self.admin_token is not None:
            # A call reaches only one process, and the others would keep serving the old version.
            instead = "start gateways on ports of their own" if self.role == "gateway" else "use release=ALIAS"
            raise UserError(f"workers: found {self.workers}; with several, admin calls are not possible: {instead}")
        if self.tls.ca is not None and self.role == "all":
            raise UserError("tls.ca: expected role=host or gateway: role=all calls no other server")
        if self.tls.ca is not None and self.tls.cert is None and self.role == "host":
            raise UserError("tls.ca: found no tls.cert; a host verifies callers by TLS only, so it needs its own")
        self.tls.expires()
        if self.role == "gateway":
            if (self.hosts is None) == (self.shards is None):
                raise UserError("role=gateway: expected one of hosts=[http://HOST:PORT, dns:NAME:PORT] and shards=")
            databases = [place for place in self.hosts or () if is_database(place)]
            if databases and (len(self.hosts or ()) > 1 or self.release is None):
                raise UserError(f"hosts: found {databases[0]}, expected it to be the only one, and release=ALIAS")
        elif self.hosts is not None or self.shards is not None:
            raise UserError(f"role={self.role}: hosts and shards are settings of role=gateway")
        elif self.release is None:
            raise UserError(f"role={self.role}: expected release=VERSION|ALIAS")
        if self.shard is not None and self.role != "host":
            raise UserError(f"shard: found {self.shard}, expected null: only role=host has a part of the corpus")
        if self.page and self.role == "host":
            raise UserError("page: found true, expected false or null: role=host has no users to show")

    @property
    def database(self) -> VectorDatabase | None:
        """Vector database that a gateway searches; None for hosts."""
        hosts = self.hosts if self.role == "gateway" else None
        return open_database(hosts[0]) if hosts and is_database(hosts[0]) else None

    @property
    def releases(self) -> ReleaseCache:
        """Releases of the store, each opened after its trial; a host of a shard opens its part."""
        trial = None
        if self.trial_seconds is not None:
            trial = functools.partial(try_once, seconds=self.trial_seconds, most=self.trial_bytes)
        return ReleaseCache(self.store, trial, shard=self.corpus_shard)

    @property
    def corpus_shard(self) -> CorpusShard | None:
        """Part of the corpus that a host searches; None for all of it."""
        return None if self.shard is None else CorpusShard.parse(self.shard)

    @property
    def suppression_list(self) -> str:
        """File of forgotten users."""
        return self.suppressed or str(Path(self.store, "state", NAME))

    @property
    def access(self) -> Access:
        """Rules about callers. By default a server of the loopback address checks the name that requests use."""
        names = () if self.access_hosts is None and is_loopback(self.host) else self.access_hosts
        return Access(
            admin=self.admin_token,
            read=self.read_token,
            events=self.events_token,
            host=self.host_token,
            names=names,
            origins=self.access_origins,
        )

    @property
    def has_page(self) -> bool:
        """True if the page is served: by default only if one process does everything, because it lists user ids."""
        return self.role == "all" if self.page is None else self.page
