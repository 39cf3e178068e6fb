"""Which network addresses are public, and which others the owner allows.

`ipaddress.is_global` alone is not enough: Python 3.11 calls NAT64, 6to4, site-local and multicast
addresses global.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import httpx

from agentflow.errors import SettingsError

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC: tuple[Network, ...] = tuple(
    ipaddress.ip_network(network)
    for network in (
        "192.0.0.0/24",  # protocol assignments (RFC 6890)
        "192.88.99.0/24",  # 6to4 relays (RFC 7526)
        "2001::/23",  # protocol assignments, Teredo among them (RFC 2928)
        "2001:db8::/32",  # documentation (RFC 3849)
        "2002::/16",  # 6to4: carries any IPv4 address (RFC 3056)
        "3fff::/20",  # documentation (RFC 9637)
    )
)
_NAME = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
_ENDS_IN_NUMBER = re.compile(r"(.*\.)?([0-9]+|0x[0-9a-f]*)")


@dataclass(frozen=True, slots=True)
class Allowed:
    """What may be reached though it is not public: hosts as URLs write them, whole networks."""

    hosts: frozenset[tuple[str, int]] = frozenset()
    networks: tuple[Network, ...] = ()

    @classmethod
    def of(cls, entries: Iterable[str]) -> Allowed:
        """From `host:port`, `[v6]:port` or `network/bits`; raises `SettingsError` for others."""
        hosts, networks = set(), []
        for entry in entries:
            try:
                if "/" in entry:
                    networks.append(ipaddress.ip_network(entry))
                else:
                    hosts.add(_host_and_port(entry))
            except ValueError as error:
                raise SettingsError(
                    f"{entry!r} is not an address to allow. Write host:port, as 127.0.0.1:8080, "
                    "or a network, as 10.0.0.0/8."
                ) from error
        return cls(frozenset(hosts), tuple(networks))

    def host(self, host: str, port: int) -> bool:
        """Whether this host, written so and not another name for it, is allowed on this port."""
        return (canonical(host), port) in self.hosts

    def address(self, address: Address) -> bool:
        """Whether the address is public or in an allowed network."""
        return is_public(address) or any(address in network for network in self.networks)


def is_public(address: Address) -> bool:
    """Whether the address is an ordinary one on the internet, carrying no other inside."""
    if any(address in network for network in _NOT_PUBLIC):
        return False
    if isinstance(address, ipaddress.IPv6Address):
        return address in _GLOBAL_UNICAST and address.is_global and address.scope_id is None
    return address.is_global and not address.is_multicast


def literal(host: str) -> Address | None:
    """The address if `host` is one in its plain form, else None."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def is_disguised(host: str) -> bool:
    """Whether a host is an IPv4 address in another form: `2130706433`, `0x7f.1`, `0177.0.0.1`.

    Source: https://url.spec.whatwg.org/#ends-in-a-number-checker
    """
    name = canonical(host)
    return literal(name) is None and _ENDS_IN_NUMBER.fullmatch(name) is not None


def canonical(host: str) -> str:
    """One spelling per host: lower case, no final dot, addresses in their shortest form."""
    name = host.lower().removesuffix(".")
    address = literal(name)
    return str(address) if address else name


def ascii_host(host: str) -> str:
    """The canonical host in the form DNS knows, IDNA-encoded. Raises `ValueError`."""
    try:
        name = canonical(httpx.URL(scheme="http", host=host).raw_host.decode("ascii"))
    except httpx.InvalidURL as error:
        raise ValueError(host) from error
    if literal(name) or (len(name) <= 253 and _NAME.fullmatch(name)):
        return name
    raise ValueError(host)


def _host_and_port(entry: str) -> tuple[str, int]:
    host, _, port = entry.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if ":" in bare and bare == host:
        raise ValueError(entry)
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(entry)
    return ascii_host(bare), int(port)
