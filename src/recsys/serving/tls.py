"""TLS of servers, and of gateways and commands that call them. Imports no torch.

A server with `tls.cert` speaks TLS. A host with `tls.ca` admits only callers with a certificate of that authority; a
gateway with `tls.ca` calls its hosts by TLS, verifies them with it, and shows them its own certificate.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from recsys.core.errors import UserError

log = logging.getLogger("recsys")

# Seconds between two looks at the files, and before the end of a certificate from which on each day has a warning.
LOOK_EVERY, WARN_SECONDS, DAY_SECONDS = 10.0, 30 * 86_400.0, 86_400.0
# Environment of the commands that call servers.
_VARIABLES = ("RECSYS_TLS_CERT", "RECSYS_TLS_KEY", "RECSYS_TLS_CA")


@dataclass(frozen=True)
class TLS:
    """Files in PEM form.

    Attributes:
        cert: certificate of this process, with the authorities between it and the root.
        key: its private key; None if it is in the file of the certificate.
        ca: certificates of the authorities by which other processes are verified.
    """

    cert: str | None = None
    key: str | None = None
    ca: str | None = None

    @classmethod
    def of_environment(cls) -> TLS:
        """Return the files that RECSYS_TLS_CERT, RECSYS_TLS_KEY and RECSYS_TLS_CA name."""
        return cls(*(os.environ.get(name) or None for name in _VARIABLES))

    def expires(self, now: float | None = None) -> float | None:
        """Check the files, and return the time at which the certificate ends; None if there is none.

        Raises:
            UserError: If a file is missing, unreadable or expired, or the key does not belong to the certificate.
        """
        now = time.time() if now is None else now
        if self.key is not None and self.cert is None:
            raise UserError(f"tls.key: found {self.key} without tls.cert, expected both")
        if self.ca is not None:
            for one in _certificates("tls.ca", self.ca):
                _check_time("tls.ca", self.ca, one, now=now)
        if self.cert is None:
            return None
        own = _certificates("tls.cert", self.cert)[0]
        end = _check_time("tls.cert", self.cert, own, now=now)
        place, file = ("tls.key", self.key) if self.key else ("tls.cert", self.cert)
        if _private_key(place, file).public_key() != own.public_key():
            raise UserError(f"{place}: {file}: the key does not belong to the certificate {self.cert}")
        return end

    def server_context(self, *, verifies_callers: bool) -> ssl.SSLContext | None:
        """Return the context of a server; None without a certificate."""
        if self.expires() is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.load(context)
        if verifies_callers and self.ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.ca)
        return context

    def client_context(self) -> ssl.SSLContext | None:
        """Return the context of calls to servers; None without `ca`, for calls without TLS."""
        if self.ca is None:
            return None
        self.expires()
        context = ssl.create_default_context(cafile=self.ca)
        self.load(context)
        return context

    def load(self, context: ssl.SSLContext) -> None:
        """Let new connections of a context show the certificate, if there is one."""
        if self.cert is not None:
            context.load_cert_chain(self.cert, self.key)

    def changed(self) -> Sequence[tuple[int, int]]:
        """Return what differs when a file is replaced."""
        found = [os.stat(file) for file in (self.cert, self.key) if file is not None]
        return [(one.st_mtime_ns, one.st_ino) for one in found]


class KeptCertificate:
    """The certificate of a running server: it is loaded again when its files change, and warned about before it ends.

    Args:
        tls: files of the process, with a certificate.
        contexts: contexts that show the certificate.
        expires: called with the end of the certificate, in seconds since 1970.
    """

    def __init__(self, tls: TLS, contexts: Sequence[ssl.SSLContext], *, expires: Callable[[float], None]) -> None:
        self._tls, self._contexts, self._expires = tls, contexts, expires
        self._warned = -DAY_SECONDS
        self._task: asyncio.Task[None] | None = None
        self._take(tls.changed())

    def _take(self, files: Sequence[tuple[int, int]]) -> None:
        end = self._tls.expires()
        assert end is not None, "there is a certificate"
        for context in self._contexts:
            self._tls.load(context)
        self._files, self._end = files, end
        self._expires(end)
        log.info("tls.cert: %s %s", self._tls.cert, describe(end))

    def look(self) -> None:
        """Load the certificate if its files have changed, and warn if it ends soon."""
        if self._end - time.time() < WARN_SECONDS and time.monotonic() - self._warned >= DAY_SECONDS:
            log.warning("tls.cert: %s %s", self._tls.cert, describe(self._end))
            self._warned = time.monotonic()
        try:
            files = self._tls.changed()
            if files != self._files:
                self._take(files)
        except (UserError, OSError) as error:
            log.error("the certificate stays as it is: %s", error)

    async def start(self) -> None:
        """Look every few seconds."""

        async def keep_looking() -> None:
            while True:
                self.look()
                await asyncio.sleep(LOOK_EVERY)

        self._task = asyncio.create_task(keep_looking())

    async def stop(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


def describe(end: float) -> str:
    """Return when a certificate ends, in words."""
    date, days = datetime.fromtimestamp(end, UTC).strftime("%Y-%m-%d %H:%M UTC"), (end - time.time()) / DAY_SECONDS
    return f"ends on {date}, in {days:.0f} days"


def _read(place: str, file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise UserError(f"{place}: {file}: {str(error.strerror).lower()}") from error


def _certificates(place: str, file: str) -> list[x509.Certificate]:
    content = _read(place, file)
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError as error:
        raise UserError(f"{place}: {file}: found no certificate in PEM form ({_line(error)})") from error


def _private_key(place: str, file: str) -> PrivateKeyTypes:
    content = _read(place, file)
    try:
        return serialization.load_pem_private_key(content, None)
    except TypeError as error:
        raise UserError(f"{place}: {file}: the key has a password, expected a key without one") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        missing = "; tls.key names its file" if place == "tls.cert" else ""
        raise UserError(f"{place}: {file}: found no private key in PEM form{missing}") from error


def _check_time(place: str, file: str, certificate: x509.Certificate, *, now: float) -> float:
    begin, end = (one.timestamp() for one in (certificate.not_valid_before_utc, certificate.not_valid_after_utc))
    if not begin <= now < end:
        what, when = ("expired on", end) if now >= end else ("is not valid before", begin)
        moment = datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%d %H:%M UTC")
        raise UserError(f"{place}: {file}: the certificate {what} {moment}")
    return end


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
