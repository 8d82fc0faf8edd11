"""Matches on the transport protocol and its ports."""

from __future__ import annotations

from istio_init.core.light import TYPE_CHECKING, Any
from istio_init.rules.matches.kinds import OF_PROTOCOL, PROTOCOLS, Json, MatchType, Span, Unknown, Value
from istio_init.rules.model import Match, MatchKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from istio_init.rules.packet import Packet


class _Protocol(MatchType):
    kind = MatchKind.PROTOCOL
    scale = "protocol"
    option = "-p"
    attribute = "protocol"
    nft = "meta l4proto"
    keys = (("meta", "l4proto"),)

    def holds(self, packet: Packet, value: Value) -> bool:
        return packet.protocol == value

    def spans(self, value: Value) -> tuple[Span, ...]:
        return ((value, value),)

    def read_element(self, element: Any) -> Iterator[Value]:
        if not isinstance(element, str):
            raise Unknown
        yield element


class _Ports(MatchType):
    """Ports and ranges: `first:last` in iptables, `first-last` in nft."""

    # One kernel module contains the extensions of both protocols.
    modules = tuple((protocol, "xt_tcpudp") for protocol in PROTOCOLS)

    def spans(self, value: Value) -> tuple[Span, ...]:
        ranges = (ports.partition(":") for ports in str(value).split(","))
        return tuple((int(first), int(last or first)) for first, _, last in ranges)

    def nft_value(self, value: Value) -> str:
        return str(value).replace(":", "-")

    def tidy(self, values: Iterable[Value]) -> tuple[Value, ...]:
        from istio_init.rules.intervals import tidy_ports

        return tidy_ports(map(str, values))

    def read(self, condition: Json, source: str) -> Iterator[list[Match]]:
        yield [Match(MatchKind.PROTOCOL, source)]
        yield self.alternatives(condition)

    def read_element(self, element: Any) -> Iterator[Value]:
        match element:
            case {"range": [int(first), int(last)]}:
                yield f"{first}:{last}"
            case int():
                yield str(element)
            case _:
                raise Unknown


def _is_in_range(port: int, ports: str) -> bool:
    first, _, last = ports.partition(":")
    return int(first) <= port <= int(last or first)


class _SourcePort(_Ports):
    kind = MatchKind.SOURCE_PORT
    scale = "source port"
    option = "--sport"
    extension = OF_PROTOCOL
    nft = "{protocol} sport"
    keys = tuple((protocol, "sport") for protocol in PROTOCOLS)
    joins = True

    def holds(self, packet: Packet, value: Value) -> bool:
        return _is_in_range(packet.source_port, str(value))


class _DestinationPort(_Ports):
    kind = MatchKind.DESTINATION_PORT
    scale = "destination port"
    option = "--dport"
    extension = OF_PROTOCOL
    nft = "{protocol} dport"
    keys = tuple((protocol, "dport") for protocol in PROTOCOLS)
    joins = True

    def holds(self, packet: Packet, value: Value) -> bool:
        return _is_in_range(packet.port, str(value))

    def none_of(self, values: Sequence[Value]) -> list[Match]:
        return [Match(MatchKind.DESTINATION_PORTS, ",".join(map(str, values)), negated=True)]


class _DestinationPorts(_Ports):
    kind = MatchKind.DESTINATION_PORTS
    scale = "destination port"
    option = "--dports"
    extension = "multiport"
    nft = "{protocol} dport"

    def holds(self, packet: Packet, value: Value) -> bool:
        return any(_is_in_range(packet.port, one) for one in str(value).split(","))

    def nft_values(self, value: Value) -> tuple[Value, ...]:
        return tuple(str(value).split(","))

    def canonical(self, value: Value) -> Value:
        return ",".join(map(str, self.tidy(str(value).split(","))))


MATCHES: tuple[MatchType, ...] = (_Protocol(), _SourcePort(), _DestinationPort(), _DestinationPorts())
