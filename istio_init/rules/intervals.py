"""Minimises lists of CIDRs and of port ranges, by merging intervals. Pure.

IPv4 is implemented here because `ipaddress` takes ten times as long, and is slow to import.
"""

from __future__ import annotations

from istio_init.core.light import TYPE_CHECKING
from istio_init.rules.values import IPV4_BITS, ipv4_number, ipv4_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Interval = tuple[int, int]  # first and last

IPV6_BITS = 128


def tidy_cidrs(cidrs: Iterable[str]) -> tuple[str, ...]:
    """Return the fewest CIDRs that cover exactly the given CIDRs or bare addresses of one family, in ascending order."""
    intervals = []
    bits = IPV4_BITS
    for cidr in cidrs:
        first, last, bits = cidr_interval(cidr)
        intervals.append((first, last))
    return tuple(cidr for interval in merge(intervals) for cidr in cidrs_between(*interval, bits))


def cidr_interval(cidr: str) -> tuple[int, int, int]:
    """Return the first and the last address of a CIDR, or of a bare address, as numbers, and how many bits they have."""
    address, _, prefix = cidr.partition("/")
    bits = IPV6_BITS if ":" in address else IPV4_BITS
    first = _number(address)
    return first, first + (1 << bits - int(prefix or bits)) - 1, bits


def tidy_ports(ports: Iterable[str]) -> tuple[str, ...]:
    """Return the fewest ports and ranges (`first:last`) that cover exactly the given ones, in ascending order."""
    ranges = (port.partition(":") for port in ports)
    merged = merge([(int(first), int(last or first)) for first, _, last in ranges])
    return tuple(f"{first}:{last}" if last > first else str(first) for first, last in merged)


def merge(intervals: list[Interval]) -> list[Interval]:
    """Join intervals that overlap or are adjacent; return them in ascending order."""
    merged: list[Interval] = []
    for first, last in sorted(intervals):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged


def range_cidrs(first: str, last: str) -> Iterator[str]:
    """Yield the fewest CIDRs that cover exactly a range of addresses, both ends included."""
    return cidrs_between(_number(first), _number(last), IPV6_BITS if ":" in first else IPV4_BITS)


def _number(address: str) -> int:
    if ":" in address:
        from ipaddress import IPv6Address

        return int(IPv6Address(address))
    number = ipv4_number(address)
    if number is None:
        message = f"{address!r} is not an IPv4 address"
        raise ValueError(message)
    return number


def _text(number: int, bits: int) -> str:
    if bits == IPV6_BITS:
        from ipaddress import IPv6Address

        return str(IPv6Address(number))
    return ipv4_text(number)


def cidrs_between(first: int, last: int, bits: int) -> Iterator[str]:
    """Yield the fewest CIDRs that cover exactly a range of addresses as numbers, both ends included."""
    while first <= last:
        # The largest block that starts here: aligned to the address, and not longer than what is left.
        host_bits = min((first & -first).bit_length() - 1 if first else bits, (last - first + 1).bit_length() - 1)
        yield f"{_text(first, bits)}/{bits - host_bits}"
        first += 1 << host_bits
