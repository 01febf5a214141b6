"""Peers: which address a request comes from.

A proxy appends the address of its client to `X-Forwarded-For`. So the list is read from the right, and only as long as the address before
is that of a trusted proxy: everything further left may be forged.

Source:
    https://developer.mozilla.org/en-US/docs/Web/HTTP/Reference/Headers/X-Forwarded-For#selecting_an_ip_address
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

__all__ = ["peer_of"]

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

UNKNOWN: Final = "unknown"
"""What has no address: a socket in the file system."""
_PREFIX: Final = 64
"""Bits of an IPv6 network that belongs to one customer, which can use any address in it."""
_LONGEST_PORT: Final = 5


def peer_of(remote: str | None, forwarded: Iterable[str], proxies: Sequence[Network]) -> str:
    """Return the peer that a request counts for: an IPv4 address, or a /64 of IPv6.

    Args:
        remote: The other end of the connection.
        forwarded: The values of the headers `X-Forwarded-For`, in their order.
        proxies: The networks of the proxies that are trusted.
    """
    address = _read(remote or "")
    if address is None:
        return UNKNOWN
    entries = [entry for value in forwarded for entry in value.split(",")] if proxies else []
    while entries and any(address in network for network in proxies):
        told = _read(entries.pop().strip())
        if told is None:  # the proxy did not know, or is none that adds addresses
            break
        address = told
    if address.version == _IPV6:
        return str(ipaddress.ip_network((int(address), _PREFIX), strict=False))
    return str(address)


_IPV6: Final = 6


def _read(text: str) -> Address | None:
    """Read an address, of which some proxies add the port; one of IPv4 that is written as IPv6 is what it is."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text, _, port = text.partition(":")
        if not (port.isascii() and port.isdigit() and len(port) <= _LONGEST_PORT):
            return None
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found
