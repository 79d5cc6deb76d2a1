"""Which IP addresses are of the public internet: those a program may be sent to by a name it was given.

A name can resolve to anything: the loopback, a database in the private network, the metadata service of a cloud. So
the address is looked at, and the connection then made to that very address.
"""

from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Final

__all__ = ["is_loopback", "is_public"]

_GLOBAL_UNICAST: Final = ip_network("2000::/3")
"""All there is of public IPv6 (RFC 4291, section 2.4). Site-local, multicast and IPv4 in disguise are outside."""
_NAT64: Final = ip_network("64:ff9b::/96")
"""IPv4 as networks without it see it (RFC 6052); the address is in the last 32 bits."""
_PROTOCOL_ASSIGNMENTS: Final = ip_network("192.0.0.0/24")
"""RFC 6890; older Pythons take most of it for global, and a cloud has its metadata service there."""


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Return whether `address` is public unicast. An IPv6 address that carries an IPv4 address is judged by that."""
    if isinstance(address, IPv6Address):
        inner = _embedded(address)
        if inner is None:
            return address in _GLOBAL_UNICAST and address.is_global
        address = inner
    return address.is_global and not address.is_multicast and address not in _PROTOCOL_ASSIGNMENTS


def is_loopback(address: IPv4Address | IPv6Address) -> bool:
    """Return whether `address` is the loopback, said plainly: Pythons do not agree on IPv4 in the disguise of IPv6."""
    return address.is_loopback and (isinstance(address, IPv4Address) or address.ipv4_mapped is None)


def _embedded(address: IPv6Address) -> IPv4Address | None:
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour
