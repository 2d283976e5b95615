"""Connection to a Valkey or Redis server that keeps what it acknowledges. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import redis
from redis.backoff import ExponentialBackoff
from redis.connection import Connection
from redis.retry import Retry

from recsys.core.errors import UserError

# With these settings a server acknowledges a write after fsync.
DURABLE = {"appendonly": "yes", "appendfsync": "always", "no-appendfsync-on-rewrite": "no"}

SCHEMES = ("redis", "rediss", "unix", "valkey", "valkeys")

_CONNECT_SECONDS, _ANSWER_SECONDS, _RETRIES = 2.0, 5.0, 2


class NotDurableError(Exception):
    """The settings of the server allow it to lose what it acknowledged."""


def is_server(place: str) -> bool:
    """Return True for the address of a server, and False for a path."""
    return "://" in place


class DurableServer:
    """Client of one server. Every new connection checks the settings, because the server may have restarted.

    Args:
        url: `redis://host:port/db`, `rediss://` or `unix://` as in redis-py, or `valkey://` and `valkeys://`.
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
        scheme = {"valkey": "redis", "valkeys": "rediss"}.get(scheme, scheme)
        # Without user and password.
        self.place = rest.rpartition("@")[2]
        self._key, self._what, self._failed = key, what, failed
        try:
            pool = redis.ConnectionPool.from_url(
                scheme + separator + rest,
                redis_connect_func=self._check_connection,
                socket_connect_timeout=_CONNECT_SECONDS,
                socket_timeout=_ANSWER_SECONDS,
                retry=Retry(ExponentialBackoff(cap=0.2, base=0.02), _RETRIES),
            )
        except ValueError as error:
            raise UserError(f"{key}: {self.place}: expected the address of a server ({error})") from error
        self.client = redis.Redis(connection_pool=pool)
        # Why nothing may be written; None if the settings are right.
        self.fault: str | None = None
        try:
            self.client.ping()
        except NotDurableError as error:
            raise UserError(str(error)) from error
        except redis.RedisError as error:
            raise self.failure(error) from error

    def check(self) -> None:
        """Check the settings, which may change under a live connection; `fault` is set while they are wrong."""
        pool = self.client.connection_pool
        with self.answers():
            connection = pool.get_connection()
            try:
                self._check_durable(connection)
                self.fault = None
            except NotDurableError as error:
                self.fault = str(error)
                raise
            finally:
                pool.release(connection)

    @contextmanager
    def answers(self) -> Iterator[None]:
        """Turn errors of the client in this context into errors of the type `failed`."""
        try:
            yield
        except (redis.RedisError, NotDurableError) as error:
            raise self.failure(error) from error

    def failure(self, error: Exception) -> Exception:
        """Return the error for the caller."""
        return self._failed(f"{self._key}: {self.place}: {error or type(error).__name__}")

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
