"""Discovery of hosts: a fixed list, or addresses and the addresses of DNS names. Imports no torch."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence

from recsys.core.errors import UserError
from recsys.serving.gateway.host_client import HostClient
from recsys.serving.gateway.remote_host import Address, RemoteHost, parse_address

log = logging.getLogger("recsys")

# Returns the present hosts of one shard, which may come and go; a host that was returned before is the same object.
Discovery = Callable[[], Awaitable[Sequence[HostClient]]]


def fixed_hosts(*clients: HostClient) -> Discovery:
    """Return the discovery of hosts that stay, such as one in the same process."""

    async def hosts() -> Sequence[HostClient]:
        return clients

    return hosts


class HostDiscovery:
    """Discovery of hosts by address or DNS name.

    Args:
        places: `http://HOST:PORT`, and `dns:NAME:PORT` for every address that the name has at the moment.
        token: token that gateway and hosts prove to each other; None for no proof.
        tls: context of calls by TLS; None for calls without it. Hosts of a DNS name show a certificate of that name.
    """

    def __init__(self, places: Sequence[str], *, token: str | None = None, tls: ssl.SSLContext | None = None) -> None:
        if not places:
            raise UserError("hosts: found none, expected http://HOST:PORT or dns:NAME:PORT")
        for place in places:
            if place.startswith("http://" if tls else "https://"):
                rule = "expected https://, because tls.ca is set" if tls else "https:// needs tls.ca=FILE"
                raise UserError(f"hosts: found {place}; {rule}")
        self._addresses = [
            parse_address(place, is_tls=tls is not None) for place in places if not place.startswith("dns:")
        ]
        self._names = [parse_address(place.removeprefix("dns:")) for place in places if place.startswith("dns:")]
        self._token, self._tls = token, tls
        self._resolved: dict[Address, list[Address]] = {}
        self._clients: dict[Address, HostClient] = {}

    async def __call__(self) -> Sequence[HostClient]:
        """Return the hosts at the addresses and names; a name that does not resolve keeps its last addresses."""
        for name in self._names:
            try:
                self._resolved[name] = await _resolve(name)
            except OSError as error:
                log.warning("dns:%s:%d does not resolve: %s", *name, error)
        names: dict[Address, str | None] = dict.fromkeys(self._addresses)
        names |= {address: name[0] for name in self._names for address in self._resolved.get(name, [])}
        self._clients = {
            address: self._clients.get(address)
            or RemoteHost(address, token=self._token, tls=self._tls, tls_name=name if self._tls else None)
            for address, name in names.items()
        }
        return list(self._clients.values())


async def _resolve(name: Address) -> list[Address]:
    host, port = name
    entries = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return sorted({(str(entry[4][0]), port) for entry in entries})
