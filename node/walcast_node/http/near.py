"""IP addresses as the kernel tells them: which of them stay on this machine."""

from __future__ import annotations

import ipaddress

IP = ipaddress.IPv4Address | ipaddress.IPv6Address


def ip_of(text: str) -> IP | None:
    """None for what is not an IP address. An IPv4 address that is mapped into IPv6 is that IPv4 address."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def is_loopback(text: str) -> bool:
    """Is this an IP address of the loopback interface? A name is none, whatever it looks like."""
    address = ip_of(text)
    return address is not None and address.is_loopback
