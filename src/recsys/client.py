"""Client of the serving API; it needs only the standard library.

    with Client("http://127.0.0.1:8080") as client:
        client.add_events([{"user_id": 7, "item_id": 50}])
        for item in client.retrieve(7, k=10).items:
            print(item.item_id, item.score)

Shapes: B users, M embeddings of one user, D dim.
"""

from __future__ import annotations

import json
import random
import ssl
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

Id = int | str
Filter = Mapping[str, Any]

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.05, 2.0


@dataclass(frozen=True)
class ScoredItem:
    """One recommended item."""

    item_id: Id
    score: float


@dataclass(frozen=True)
class Answer:
    """Answer of `retrieve`.

    Attributes:
        items: best first.
        version: version of the release that answered.
        user_tower_version, index_version: versions of the two halves; both equal `version`.
        host: host that searched.
        history_length: number of events that the user tower read.
        unknown_items: items of the history that the release does not contain.
        history_missing: the server could not read the stored history of the user in time.
        impression_id: id of the answer, which outcomes name; None if the server records no impressions.
    """

    items: list[ScoredItem]
    version: str
    user_tower_version: str
    index_version: str
    host: str
    history_length: int
    unknown_items: list[Id]
    history_missing: bool = False
    impression_id: str | None = None


@dataclass(frozen=True)
class SimilarAnswer:
    """Answer of `similar`; the attributes are those of `Answer`."""

    items: list[ScoredItem]
    version: str
    index_version: str
    host: str
    unknown_items: list[Id]
    impression_id: str | None = None


@dataclass(frozen=True)
class SearchResult:
    """Result of a search for one user: item ids, best first, and their scores."""

    item_ids: list[Id]
    scores: list[float]


@dataclass(frozen=True)
class Versions:
    """Versions of one model on one host: the served one, and all that the host can search."""

    serving: str | None
    loaded: list[str]


class RequestError(Exception):
    """Request that the server refused or could not answer.

    Attributes:
        status: HTTP status; None if there was no answer.
        code: stable code such as `bad_request`; `no_answer` if there was no answer.
        message: what was found and what was expected.
        field: wrong field of the request, if the error is about one field.
    """

    def __init__(self, status: int | None, code: str, *, message: str, field: str | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.status, self.code, self.message, self.field = status, code, message, field


class VersionNotHeldError(RequestError):
    """Search for a version that the host does not hold (409).

    Attributes:
        serving: version that the host serves.
        loaded: versions that the host can search.
    """

    def __init__(self, code: str, message: str, *, field: str | None, serving: str | None, loaded: list[str]) -> None:
        super().__init__(409, code, message=message, field=field)
        self.serving, self.loaded = serving, loaded


class AccessDeniedError(RequestError):
    """Call without the token that the server expects (401), or one that the server does not allow (403)."""


class UntrustedServerError(RequestError):
    """The certificate of the server is not accepted; nothing was sent."""


class UnavailableError(RequestError):
    """No attempt got an answer other than 503. The server may have carried out the request."""


class Client:
    """Client of one server. It keeps connections open, and is thread-safe.

    Args:
        url: address of the server; behind a proxy, with the path.
        timeout: seconds that one attempt may take to connect, and to answer.
        retries: number of further attempts if the connection is lost or the answer is 503. Repeating a call is safe:
            the client sets the time of events, and the server stores a repeated event once.
        token: token of the role (`tokens.*` of the server); None to send none.
        ca: file of the authorities that sign the server's certificate, for https; None for those of the system.

    Calls raise `RequestError` if the server refuses them (`AccessDeniedError` if the token is wrong), and
    `UnavailableError` if no attempt got an answer. `UntrustedServerError` says that the certificate is not accepted.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        *,
        timeout: float = 5.0,
        retries: int = 2,
        token: str | None = None,
        ca: str | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url: found {url!r}, expected http://HOST:PORT or https://HOST:PORT")
        if timeout <= 0 or retries < 0:
            raise ValueError(f"found timeout {timeout}, retries {retries}; expected a positive one, and at least 0")
        if ca is not None and parts.scheme != "https":
            raise ValueError(f"ca: found {ca!r} with {url!r}, expected https://HOST:PORT")
        if token is not None and (not token or not token.isascii() or not token.isprintable()):
            raise ValueError("token: expected letters, digits and signs")
        try:
            self._tls = ssl.create_default_context(cafile=ca) if parts.scheme == "https" else None
        except (OSError, ssl.SSLError) as error:
            raise ValueError(f"ca: {ca}: {error.strerror or error}") from error
        self._token_headers = {} if token is None else {"authorization": f"Bearer {token}"}
        self._host, self._port, self._path = parts.hostname, parts.port, parts.path.rstrip("/")
        self._timeout, self._retries = timeout, retries
        self._idle: deque[HTTPConnection] = deque()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()

    def retrieve(
        self,
        user_id: Id | None = None,
        k: int = 100,
        *,
        history: Sequence[Mapping[str, Any]] | None = None,
        user: Mapping[str, Any] | None = None,
        request: Mapping[str, Any] | None = None,
        exclude: Sequence[Id] | None = None,
        exclude_seen: bool = True,
        filter: Filter | None = None,
        quotas: Mapping[str, int] | None = None,
        version: str | None = None,
    ) -> Answer:
        """Return the k best items for a user.

        Args:
            user_id: user whose stored history and profile are read; None for an anonymous request.
            k: number of items.
            history: events used instead of the stored ones, oldest first: `item_id`, optional `timestamp`, features.
            user: profile features; they replace stored ones of the same name.
            request: request features.
            exclude: items that must not be in the answer.
            exclude_seen: leave out the items of the history.
            filter: column of the items -> value, values or conditions.
            quotas: column of the items -> largest number of items with the same value.
            version: release that must answer.

        Raises:
            VersionNotHeldError: If no host holds that version.
        """
        given = {"user_id": user_id, "history": history, "user": user, "request": request, "exclude": exclude}
        given |= {"filter": filter, "quotas": quotas, "version": version}
        found = self._call("POST", "/v1/retrieve", {**_given(given), "k": k, "exclude_seen": exclude_seen})
        return Answer(**_attributes(found, Answer))

    def similar(
        self,
        item_ids: Sequence[Id],
        k: int = 100,
        *,
        exclude: Sequence[Id] | None = None,
        filter: Filter | None = None,
        quotas: Mapping[str, int] | None = None,
        version: str | None = None,
    ) -> SimilarAnswer:
        """Return the k items nearest to the mean direction of some items, without these; see `retrieve`."""
        given = {"exclude": exclude, "filter": filter, "quotas": quotas, "version": version}
        found = self._call("POST", "/v1/similar", {**_given(given), "item_ids": item_ids, "k": k})
        return SimilarAnswer(**_attributes(found, SimilarAnswer))

    def add_events(self, events: Sequence[Mapping[str, Any]]) -> dict[str, int]:
        """Store events durably: `user_id`, `item_id`, optional `timestamp` (UTC seconds; default: now), features.

        If one is invalid, none is stored.

        Returns:
            Number of events that were `stored`, `repeated` or `dropped`.
        """
        now = int(time.time())
        found: dict[str, int] = self._call("POST", "/v1/events", [{"timestamp": now, **event} for event in events])
        return found

    def add_outcomes(self, outcomes: Sequence[Mapping[str, Any]]) -> dict[str, int]:
        """Store durably what users did: `impression_id`, `item_id`, `action`, optional `timestamp` (default: now).

        Returns:
            Number of outcomes that were `stored`, `repeated`, `unknown` or `late`.
        """
        now = int(time.time())
        found: dict[str, int] = self._call("POST", "/v1/outcomes", [{"timestamp": now, **one} for one in outcomes])
        return found

    def search(
        self,
        version: str,
        embeddings: Sequence[Sequence[float]] | Sequence[Sequence[Sequence[float]]],
        *,
        k: int = 100,
        filter: Filter | None = None,
        exclude: Sequence[Sequence[Id]] | None = None,
    ) -> list[SearchResult]:
        """Return the k best items of an ANN host for each user.

        Args:
            version: version of the user tower that computed the embeddings.
            embeddings: [B, D], or [B, M, D] if a user has up to M.
            k: number of items for each user.
            filter: column of the items -> value or values.
            exclude: B lists of items that must not be in the answer.

        Raises:
            VersionNotHeldError: If the host does not hold that version.
        """
        body = {"version": version, "embeddings": embeddings, "k": k}
        found = self._call("POST", "/v1/search", {**_given({"filter": filter, "exclude": exclude}), **body})
        return [SearchResult(result["item_ids"], result["scores"]) for result in found["results"]]

    def hosts(self) -> dict[str, dict[str, Versions] | None]:
        """Return host -> model -> versions; None for a host that does not answer."""
        found = self._call("GET", "/v1/hosts")
        return {host: None if models is None else _versions(models) for host, models in found.items()}

    def versions(self) -> dict[str, Versions]:
        """Return model -> versions of an ANN host."""
        return _versions(self._call("GET", "/v1/version"))

    def is_ready(self) -> bool:
        """Return whether the server is ready to answer; one attempt."""
        try:
            status, _, _ = self._attempt("GET", "/readyz", None)
        except (OSError, HTTPException):
            return False
        return status == 200

    def _call(self, method: str, path: str, content: object = None) -> Any:
        body = None if content is None else json.dumps(content, allow_nan=False).encode()
        pause = _FIRST_PAUSE_SECONDS
        for attempt in range(self._retries + 1):
            wait = pause * random.uniform(0.5, 1.5)
            try:
                status, answer, retry_after = self._attempt(method, path, body)
                if status != 503:
                    return _read(status, answer)
                failure: RequestError = _failure(status, answer)
                wait = max(wait, min(retry_after, _LONGEST_PAUSE_SECONDS))
            except ssl.SSLCertVerificationError as error:
                message = f"{self._host}:{self._port}: {error.verify_message}; ca=FILE names the authority"
                raise UntrustedServerError(None, "untrusted_certificate", message=message) from error
            except (OSError, HTTPException) as error:
                reason = str(error) or type(error).__name__
                failure = UnavailableError(None, "no_answer", message=f"{self._host}:{self._port}: {reason}")
            if attempt < self._retries:
                time.sleep(wait)
                pause *= 2
        raise failure

    def _connect(self) -> HTTPConnection:
        if self._tls is None:
            return HTTPConnection(self._host, self._port, timeout=self._timeout)
        return HTTPSConnection(self._host, self._port, timeout=self._timeout, context=self._tls)

    def _attempt(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes, float]:
        """Return status, body, and the seconds of Retry-After."""
        # The server does not answer requests whose client has given up.
        headers = {"accept": "application/json", "x-deadline-ms": str(int(1000 * self._timeout)), **self._token_headers}
        if body is not None:
            headers["content-type"] = "application/json"
        while True:
            try:
                connection, is_kept = self._idle.pop(), True
            except IndexError:
                connection, is_kept = self._connect(), False
            try:
                connection.request(method, self._path + path, body, headers)
                response = connection.getresponse()
                content = response.read()
            except BaseException as error:
                connection.close()
                # A server may close an idle connection at any time. A new connection is tried before this counts.
                if is_kept and isinstance(error, ConnectionError | HTTPException):
                    continue
                raise
            if response.will_close:
                connection.close()
            else:
                self._idle.append(connection)
            wait = response.headers.get("retry-after", "")
            return response.status, content, float(wait) if wait.isdigit() else 0.0


def _given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}


def _attributes(found: Mapping[str, Any], kind: type[Answer | SimilarAnswer]) -> dict[str, Any]:
    """Return the attributes of an answer; later servers may send more."""
    items = [ScoredItem(item["item_id"], item["score"]) for item in found["items"]]
    return {name: value for name, value in found.items() if name in kind.__dataclass_fields__} | {"items": items}


def _versions(models: Mapping[str, Any]) -> dict[str, Versions]:
    return {model: Versions(held["serving"], held["loaded"]) for model, held in models.items()}


def _read(status: int, answer: bytes) -> Any:
    if status != 200:
        raise _failure(status, answer)
    try:
        return json.loads(answer)
    except ValueError as error:
        raise RequestError(status, "unreadable", message=f"found {answer[:80]!r}, expected JSON") from error


def _failure(status: int, answer: bytes) -> RequestError:
    try:
        content = json.loads(answer)
        detail = content["error"]
        code, message, field = detail["code"], detail["message"], detail.get("field")
    except (ValueError, TypeError, KeyError):
        # The answer is from a proxy and not from this server.
        code, message, field = "unreadable", f"status {status}, found {answer[:80]!r}, expected JSON", None
    else:
        if status == 409 and "loaded" in content:
            return VersionNotHeldError(code, message, field=field, serving=content["serving"], loaded=content["loaded"])
    if status in (401, 403):
        message += "; Client(token=TOKEN) sends it" if status == 401 else ""
        return AccessDeniedError(status, code, message=message, field=field)
    return (UnavailableError if status == 503 else RequestError)(status, code, message=message, field=field)
