"""Which addresses pushes may be sent to."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import httpcore

from retinue_memory.errors import RetinueError

TIMEOUT_S = 10.0
"""Of one delivery, from resolving the host to the status of the answer."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_INTERNAL = tuple(map(ipaddress.ip_network, ("192.0.0.0/24", "168.63.129.16/32", "fec0::/10", "3fff::/20")))
"""Not public, whatever `ipaddress` of this Python says: protocol assignments and Azure's host, where clouds keep metadata,
site-local addresses, and addresses for documentation."""


class Refused(RetinueError):
    """The push URL may not be called: use a public address, or list its host under push.allow in the config."""


class UrlPolicy:
    """Which addresses may be called: public ones, and the hosts and networks that `allow` names."""

    def __init__(self, allow: Iterable[str] = ()) -> None:
        self._hosts: set[str] = set()
        self._networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        for entry in allow:
            try:
                self._networks.append(ipaddress.ip_network(entry))
            except ValueError:
                self._hosts.add(entry.lower())

    async def check(self, url: str) -> None:
        """Raises Refused if a URL may not be called, with what its host resolves to now."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise Refused(f"push URL: {error}") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Refused("push URL: expected http or https, and a host")
        if parts.username is not None:
            raise Refused("push URL: expected no user and no password in it; use `authentication`")
        if not (url.isascii() and url.isprintable()) or " " in url:
            raise Refused("push URL: found characters that must be escaped")
        await self.resolve(parts.hostname, port or (443 if parts.scheme == "https" else 80))

    async def addresses(self, host: str, port: int) -> list[str]:
        """Resolve a host. Raises OSError, also if that takes too long."""
        async with asyncio.timeout(TIMEOUT_S):
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return [str(info[4][0]) for info in found]

    async def resolve(self, host: str, port: int) -> str:
        """Resolve a host to one address. Raises Refused if any of its addresses may not be called."""
        try:
            addresses = await self.addresses(host, port)
        except (OSError, UnicodeError) as error:
            raise Refused(f"push URL: {host} cannot be resolved") from error
        if host.lower() not in self._hosts:
            for address in addresses:
                if not self._may_call(address):
                    raise Refused(f"push URL: {host} is not a public address")
        return addresses[0]

    def _may_call(self, address: str) -> bool:
        ip = ipaddress.ip_address(address.partition("%")[0])
        if isinstance(ip, ipaddress.IPv6Address):
            ip = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else ip)
            if ip in _NAT64:
                ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if any(ip in network for network in self._networks):
            return True
        if any(ip in network for network in _INTERNAL):
            return False
        return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


class PolicyBackend(httpcore.AsyncNetworkBackend):
    """Connects to the address that the policy allowed: the host is resolved once, so DNS cannot change in between."""

    def __init__(self, policy: UrlPolicy) -> None:
        self._policy = policy
        self._inner: httpcore.AsyncNetworkBackend = httpcore.AnyIOBackend()  # type: ignore[assignment, unused-ignore]

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the library's signature
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        address = await self._policy.resolve(host, port)
        return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
