"""DNS capture of layout current: requests go to the proxy's resolver, and each leg gets its own conntrack zone.

Without zones, the app's request and the proxy's own request to the same server can have the same addresses and ports.
conntrack would then take them for one connection, and answers would get lost (istio/istio#33469).

A server's answers are put into the proxy's zone, whoever asked. A request that the pod forwards is in no zone, so that the
answer belongs to no connection: if the source was translated, as for Docker's containers, it gets lost (istio/istio#54689).
With `forward_dns`, such requests are in the proxy's zone, too, where translation keeps their ports apart from the proxy's.
"""

from __future__ import annotations

from istio_init.core.light import TYPE_CHECKING
from istio_init.rules.layouts import reasons
from istio_init.rules.layouts.parts import TCP, UDP, Piece, from_cidr, jump, owner_matches, redirect, to_cidr, to_port
from istio_init.rules.model import RESOLVER_PORT, Family, Match, MatchKind, Rule, Table, Target, TargetKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.rules.model import Reason
    from istio_init.rules.settings import Settings

PROXY_ZONE, APP_ZONE = 1, 2
TO_RESOLVER = to_port(str(RESOLVER_PORT))
FROM_RESOLVER = Match(MatchKind.SOURCE_PORT, str(RESOLVER_PORT))
HOST_BITS = {Family.IPV4: 32, Family.IPV6: 128}


def is_captured(settings: Settings, nameservers: tuple[str, ...]) -> bool:
    """Return whether DNS requests are captured in a family with these nameservers."""
    return settings.capture_all_dns or bool(nameservers)


def dns_pieces(settings: Settings, family: Family, nameservers: tuple[str, ...]) -> Iterator[Piece]:
    """Yield the rules of one family, except the jump from ISTIO_OUTPUT in nat."""
    hosts = tuple(f"{address}/{HOST_BITS[family]}" for address in nameservers)
    servers: tuple[str, ...] = ("",) if settings.capture_all_dns else hosts
    yield _raw("OUTPUT", (), jump("ISTIO_OUTPUT_DNS"), reasons.DNS_RAW)
    for protocol in (TCP, UDP):
        for server in servers:
            why = reasons.DNS_SERVER.of(server) if server else reasons.DNS_ANY_SERVER
            rule = Rule((*_to(server), protocol, TO_RESOLVER), redirect(settings.dns_port), why)
            yield Piece(Table.NAT, "ISTIO_OUTPUT_DNS", rule)
    from_proxy = Match(MatchKind.SOURCE_PORT, str(settings.dns_port))
    for owner in owner_matches(settings):
        yield _raw("ISTIO_OUTPUT_DNS", (UDP, TO_RESOLVER, owner), _zone(PROXY_ZONE), reasons.DNS_ZONE_PROXY)
        yield _raw("ISTIO_OUTPUT_DNS", (UDP, from_proxy, owner), _zone(APP_ZONE), reasons.DNS_ZONE_REPLY)
    for server in servers:
        yield _raw("ISTIO_OUTPUT_DNS", (*_to(server), UDP, TO_RESOLVER), _zone(APP_ZONE), reasons.DNS_ZONE_APP)
    if servers:
        yield _raw("PREROUTING", (), jump("ISTIO_INBOUND"), reasons.DNS_RAW_INBOUND)
    for server in servers:
        sender = (from_cidr(server),) if server else ()
        yield _raw("ISTIO_INBOUND", (*sender, UDP, FROM_RESOLVER), _zone(PROXY_ZONE), reasons.DNS_ZONE_SERVER)
        if settings.forward_dns:
            yield _raw("ISTIO_INBOUND", (*_to(server), UDP, TO_RESOLVER), _zone(PROXY_ZONE), reasons.DNS_ZONE_FORWARDED)


def _to(server: str) -> tuple[Match, ...]:
    return to_cidr(server) if server else ()


def _zone(number: int) -> Target:
    return Target(TargetKind.ZONE, zone=number)


def _raw(chain: str, matches: tuple[Match, ...], target: Target, why: Reason) -> Piece:
    return Piece(Table.RAW, chain, Rule(matches, target, why))
