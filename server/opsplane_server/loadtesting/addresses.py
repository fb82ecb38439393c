"""Addresses that the server may connect to on behalf of its callers."""

from __future__ import annotations

import ipaddress
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")


def may_connect(address: Address, allow_private: bool) -> bool:
    """True for public addresses, and with `allow_private` for loopback and private ones; never for link-local,
    multicast and unspecified addresses. An IPv4 address inside an IPv6 one counts as itself.
    """
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return may_connect(inner, allow_private)
    if address.is_link_local or address.is_multicast or address.is_unspecified:
        return False
    return address.is_global or (allow_private and (address.is_private or address.is_loopback))
