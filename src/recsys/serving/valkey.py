"""Connection to a Valkey or Redis server, or cluster, that keeps what it acknowledges. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import ExponentialBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.connection import Connection
from redis.exceptions import RedisClusterException
from redis.retry import Retry

from recsys.core.errors import UserError
from recsys.serving.valkey_edits import SWAP, Edit, arguments

# With these settings a server acknowledges a write after fsync.
DURABLE = {"appendonly": "yes", "appendfsync": "always", "no-appendfsync-on-rewrite": "no"}

_CLUSTER = "-cluster"
SCHEMES = ("redis", "rediss", "unix", "valkey", "valkeys", "valkey-cluster", "valkeys-cluster")
_PLAIN = {"valkey": "redis", "valkeys": "rediss"}
_NODE = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^:\[\]]+):(?P<port>[0-9]{1,5})")
# Setting of a replica that does not replace its primary by itself, which may have acknowledged more.
_NO_FAILOVER = "cluster-replica-no-failover"

_CONNECT_SECONDS, _ANSWER_SECONDS, _RETRIES = 2.0, 5.0, 2


class NotDurableError(Exception):
    """The settings of the server allow it to lose what it acknowledged."""


def is_server(place: str) -> bool:
    """Return True for the address of a server, and False for a path."""
    return "://" in place


class DurableServer:
    """Client of one server, or of a cluster. Every new connection checks the settings, because a server may restart.

    Args:
        url: `redis://host:port/db`, `rediss://` or `unix://` as in redis-py, `valkey://` and `valkeys://`, or
            `valkey-cluster://host:port,host:port` and `valkeys-cluster://`, with some nodes of the cluster.
        key: configuration key that names the server, for errors.
        what: content of the server, for errors.
        failed: type of the error if the server cannot answer.

    Raises:
        UserError: If the address is malformed, or the settings of the server allow it to lose what it acknowledged.
    """

    def __init__(self, url: str, *, key: str, what: str, failed: type[Exception]) -> None:
        scheme, separator, rest = url.partition("://")
        if scheme not in SCHEMES:
            raise UserError(f"{key}: {scheme}://: no such store; expected a path or one of {', '.join(SCHEMES)}://")
        self.is_cluster = scheme.endswith(_CLUSTER)
        scheme = scheme.removesuffix(_CLUSTER)
        # Without user and password, which may be among the options, too.
        self.place = rest.rpartition("@")[2].partition("?")[0]
        self._key, self._what, self._failed = key, what, failed
        # Why nothing may be written; None if the settings are right.
        self.fault: str | None = None
        try:
            self.client: Any = self._connect(_PLAIN.get(scheme, scheme) + separator, rest)
            self.client.ping()
            if self.is_cluster:
                self._check_nodes()
        except ValueError as error:
            raise UserError(f"{key}: {self.place}: expected the address of a server ({error})") from error
        except NotDurableError as error:
            raise UserError(str(error)) from error
        except (redis.RedisError, RedisClusterException) as error:
            if isinstance(error.__cause__, NotDurableError):
                raise UserError(str(error.__cause__)) from error
            raise self.failure(error) from error

    def _connect(self, scheme: str, rest: str) -> Any:
        limits: dict[str, Any] = {"socket_connect_timeout": _CONNECT_SECONDS, "socket_timeout": _ANSWER_SECONDS}
        retry = Retry(ExponentialBackoff(cap=0.2, base=0.02), _RETRIES)
        if not self.is_cluster:
            pool = redis.ConnectionPool.from_url(
                scheme + rest, redis_connect_func=self._check_connection, retry=retry, **limits
            )
            return redis.Redis(connection_pool=pool)
        login, at, places = rest.rpartition("@")
        places, question, options = places.rstrip("/").partition("?")
        nodes = []
        for place in places.rstrip("/").split(","):
            if (found := _NODE.fullmatch(place)) is None:
                raise ValueError(f"found {place!r} in a list of nodes, expected HOST:PORT,HOST:PORT")
            nodes.append((found["host"].strip("[]"), int(found["port"]), place))
        return RedisCluster(
            url=f"{scheme}{login}{at}{nodes[0][2]}{question}{options}",
            startup_nodes=[ClusterNode(host, port) for host, port, _ in nodes[1:]],
            # The given names stay valid when all nodes have got other addresses.
            dynamic_startup_nodes=False,
            require_full_coverage=False,
            # The client learns from each redirection, so that none is left after its retries.
            reinitialize_steps=1,
            retry=retry,
            redis_connect_func=self._check_durable,
            **limits,
        )

    def nodes(self) -> list[redis.Redis]:
        """Return a client of each server that accepts writes."""
        if not self.is_cluster:
            return [self.client]
        return [self.client.get_redis_connection(node) for node in self.client.get_primaries()]

    def together(self, prefix: str) -> str:
        """Return a prefix of keys that are on one node, which scripts need."""
        return f"{{{prefix}}}" if self.is_cluster else prefix

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the content of each key; of a cluster not at one moment."""
        found: list[bytes | None]
        if not self.is_cluster:
            found = self.client.mget(keys) if keys else []
            return found
        # A slot on its way to another node answers no command of several keys.
        with self.client.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.get(key)
            found = pipe.execute()
        return found

    def by_node(self, keys: Sequence[str]) -> list[list[str]]:
        """Return the keys of each node."""
        found: dict[str, list[str]] = {}
        for key in keys:
            found.setdefault(self.client.get_node_from_key(key).name if self.is_cluster else "", []).append(key)
        return list(found.values())

    def swap(self, edits: Sequence[Edit], members: str = "", *, pipe: Any = None) -> Any:
        """Make edits of one node, all or none, and return an answer for each; with `pipe`, its `execute` returns them.

        `members` is the key of the set that members are looked up in.
        """
        key = members or edits[0].key
        # Otherwise the pipeline of a cluster asks a server where each script belongs.
        node = {"target_nodes": self.client.get_node_from_key(key)} if self.is_cluster and pipe is not None else {}
        return (self.client if pipe is None else pipe).execute_command("EVAL", SWAP, *arguments(edits, key), **node)

    def check(self) -> None:
        """Check the settings, which may change under a live connection; `fault` is set while they are wrong."""
        with self.answers():
            try:
                self._check_nodes()
                self.fault = None
            except NotDurableError as error:
                self.fault = str(error)
                raise

    def _check_nodes(self) -> None:
        """Check the settings of every server, and that no replica may replace one."""
        if self.is_cluster:
            # Otherwise the client learns of new nodes only from errors.
            self.client.nodes_manager.initialize(disconnect_startup_nodes_pools=False)
        silent: list[redis.RedisError] = []
        nodes = self.nodes()
        for node in nodes:
            pool = node.connection_pool
            try:
                connection = pool.get_connection()
                try:
                    self._check_durable(connection)
                finally:
                    pool.release(connection)
            except (redis.ConnectionError, redis.TimeoutError) as error:
                # Its settings are checked when it is back, at the first connection.
                silent.append(error)
        if len(silent) == len(nodes):
            raise silent[0]
        for replica in self.client.get_replicas() if self.is_cluster else ():
            try:
                settings: Any = self.client.get_redis_connection(replica).config_get("cluster-*-no-failover")
            except (redis.ConnectionError, redis.TimeoutError):
                # One that is down or hangs replaces nobody.
                continue
            # The name before version 5 has another word.
            if "yes" not in settings.values():
                raise NotDurableError(
                    f"{self._key}: {self.place}: would lose acknowledged {self._what} if {replica.name} replaced its "
                    f"primary, which does not wait for it; expected {_NO_FAILOVER} yes"
                )

    @contextmanager
    def answers(self) -> Iterator[None]:
        """Turn errors of the client in this context into errors of the type `failed`."""
        try:
            yield
        except (redis.RedisError, RedisClusterException, NotDurableError) as error:
            raise self.failure(error) from error

    def failure(self, error: Exception) -> Exception:
        """Return the error for the caller."""
        # Before this word a pipeline puts its command, which may name users.
        reason = str(error).rpartition("caused error: ")[2] or type(error).__name__
        return self._failed(f"{self._key}: {self.place}: {reason}")

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def _check_connection(self, connection: Connection) -> None:
        connection.on_connect()
        try:
            self._check_durable(connection)
        except NotDurableError:
            # Otherwise the pool would reuse it as a checked connection.
            connection.disconnect()
            raise

    def _check_durable(self, connection: Connection) -> None:
        place = f"{self._key}: {self.place}"
        found: dict[str, str] = {}
        for pattern in ("*append*", "maxmemory*"):
            try:
                connection.send_command("CONFIG", "GET", pattern)
                answer = connection.read_response()
            except redis.ResponseError as error:
                raise NotDurableError(
                    f"{place}: durability is unknown (CONFIG GET: {error}); expected a server "
                    f"that answers CONFIG GET, with {_settings(DURABLE)}"
                ) from error
            pairs = answer.items() if isinstance(answer, dict) else zip(answer[::2], answer[1::2], strict=True)
            found.update((name.decode(), value.decode()) for name, value in pairs)
        wrong = {name: found.get(name, "nothing") for name, value in DURABLE.items() if found.get(name) != value}
        if wrong:
            raise NotDurableError(
                f"{place}: would lose acknowledged {self._what}, found {_settings(wrong)}; "
                f"expected {_settings({name: DURABLE[name] for name in wrong})}"
            )
        policy = found.get("maxmemory-policy", "noeviction")
        if found.get("maxmemory", "0") != "0" and policy != "noeviction":
            raise NotDurableError(
                f"{place}: would drop {self._what} when its memory is full, found "
                f"maxmemory-policy {policy}; expected noeviction"
            )


def _settings(settings: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())
