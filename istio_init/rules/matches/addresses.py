"""Matches on addresses and interfaces."""

from __future__ import annotations

from istio_init.core.errors import Unsupported
from istio_init.core.light import TYPE_CHECKING, Any
from istio_init.rules.matches.kinds import MatchType, Span, Unknown, Value
from istio_init.rules.model import MatchKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from istio_init.rules.packet import Packet

ADDRESS = frozenset("0123456789abcdef.:")
LAST_CHARACTER = "\U0010ffff"
SPECIAL = frozenset('"*\\')  # in a quoted string of nft


class _Address(MatchType):
    joins = True

    def parse(self, text: str) -> Value | None:
        if "." in text and ":" in text:
            from ipaddress import ip_network

            try:
                return str(ip_network(text))  # as plans have it; iptables-save prints ::102:304 as ::1.2.3.4
            except ValueError:
                return None
        return text

    def spans(self, value: Value) -> tuple[Span, ...]:
        from istio_init.rules.intervals import cidr_interval

        first, last, _ = cidr_interval(str(value))
        return ((first, last),)

    def native_text(self, text: str) -> str:
        """Convert `10.0.0.0/255.0.0.0` to `10.0.0.0/8`."""
        from ipaddress import ip_interface

        return str(ip_interface(text))

    def tidy(self, values: Iterable[Value]) -> tuple[Value, ...]:
        from istio_init.rules.intervals import tidy_cidrs

        return tidy_cidrs(map(str, values))

    def read_element(self, element: Any) -> Iterator[Value]:
        match element:
            case {"prefix": {"addr": str(address), "len": int(length)}}:
                yield f"{address}/{length}"
            case {"range": [str(first), str(last)]}:
                from istio_init.rules.intervals import range_cidrs

                yield from range_cidrs(first, last)
            case str() if element and ADDRESS.issuperset(element):
                yield element
            case _:
                raise Unknown


def _is_inside(address: str, cidr: Value) -> bool:
    from ipaddress import ip_address, ip_network

    return ip_address(address) in ip_network(cidr)


class _Source(_Address):
    kind = MatchKind.SOURCE
    scale = "source"
    option = "-s"
    attribute = "src"
    nft = "{family} saddr"
    keys = (("ip", "saddr"), ("ip6", "saddr"))

    def holds(self, packet: Packet, value: Value) -> bool:
        return _is_inside(packet.source, value)


class _Destination(_Address):
    kind = MatchKind.DESTINATION
    scale = "destination"
    option = "-d"
    attribute = "dst"
    nft = "{family} daddr"
    keys = (("ip", "daddr"), ("ip6", "daddr"))

    def holds(self, packet: Packet, value: Value) -> bool:
        return _is_inside(packet.destination, value)


class _Interface(MatchType):
    """An interface name; a trailing wildcard is `+` in iptables(8) and `*` in nft(8)."""

    def spans(self, value: Value) -> tuple[Span, ...]:
        name = str(value)
        return ((name[:-1], name[:-1] + LAST_CHARACTER),) if name.endswith("+") else ((name, name),)

    def nft_value(self, value: Value) -> str:
        name = str(value)
        if SPECIAL.intersection(name):
            raise Unsupported(f"nft cannot express an interface named {name!r}")
        return f'"{name[:-1]}*"' if name.endswith("+") else f'"{name}"'

    def read_element(self, element: Any) -> Iterator[Value]:
        if not isinstance(element, str):
            raise Unknown
        yield f"{element[:-1]}+" if element.endswith("*") else element


def _is_interface(name: str, wanted: Value) -> bool:
    text = str(wanted)
    return name.startswith(text[:-1]) if text.endswith("+") else name == text


class _InInterface(_Interface):
    kind = MatchKind.IN_INTERFACE
    scale = "in interface"
    option = "-i"
    attribute = "in_interface"
    # For IPv6, python-iptables 1.2 sets one bit of the mask per character of the name, so `net+` would also match `lo`.
    ipv6_mask = "iniface_mask"
    nft = "iifname"
    keys = (("meta", "iifname"),)

    def holds(self, packet: Packet, value: Value) -> bool:
        return not packet.outbound and _is_interface(packet.interface, value)


class _OutInterface(_Interface):
    kind = MatchKind.OUT_INTERFACE
    scale = "out interface"
    option = "-o"
    attribute = "out_interface"
    ipv6_mask = "outiface_mask"
    nft = "oifname"
    keys = (("meta", "oifname"),)

    def holds(self, packet: Packet, value: Value) -> bool:
        return packet.outbound and _is_interface(packet.interface, value)


MATCHES: tuple[MatchType, ...] = (_Source(), _Destination(), _InInterface(), _OutInterface())
