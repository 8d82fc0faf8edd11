"""The layout of today's Istio, 1.30: the rules that `pilot-agent istio-iptables` of master (August 2026) is meant to write.

Rules are in that tool's order. Its bugs are not reproduced; the README's compatibility section lists the differences. If
IPv6 is captured, it has the same rules as IPv4.
"""

from __future__ import annotations

from istio_init.core.light import TYPE_CHECKING, NamedTuple
from istio_init.rules.layouts import reasons
from istio_init.rules.layouts.dns import dns_pieces, is_captured
from istio_init.rules.layouts.parts import (
    IN_LO,
    OUT_LO,
    RETURN,
    TCP,
    UDP,
    Piece,
    from_cidr,
    from_cidrs,
    gather,
    jump,
    not_to,
    of_user,
    owner_matches,
    redirect,
    to_cidr,
    to_port,
)
from istio_init.rules.model import (
    LOOP_MARK,
    LOOPBACK_CIDR_IPV6,
    PROXY_SOURCE,
    PROXY_SOURCE_IPV6,
    RESOLVER_PORT,
    Family,
    Match,
    MatchKind,
    Mode,
    Plan,
    Rule,
    Table,
    Target,
    TargetKind,
    TproxyRoute,
)
from istio_init.rules.values import ALL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.rules.model import Reason
    from istio_init.rules.settings import Settings

# Canonical CIDRs that start like this lie entirely within loopback: without host bits, the prefix is at least /8, or /128.
# A CIDR that merely contains loopback (0.0.0.0/0, ::/64, and so ::1/64) asks for more, and does not count.
LOOPBACK_NETWORKS = ("127.", "::1/")
# The reasons for the rules on an owner's calls to its own pod, and on all of its traffic.
OWNER_REASONS = {
    MatchKind.UID_OWNER: (reasons.PROXY_HAIRPIN_UID, reasons.PROXY_UID),
    MatchKind.GID_OWNER: (reasons.PROXY_HAIRPIN_GID, reasons.PROXY_GID),
}


class Net(NamedTuple):
    """What differs between the families.

    Attributes:
        loopback: the CIDR of localhost.
        proxy_source: the CIDR of the source address from which the proxy connects to its app.
    """

    family: Family
    loopback: str
    proxy_source: str

    def of_family(self, cidrs: tuple[str, ...]) -> tuple[str, ...]:
        """Return the CIDRs or addresses of this family; `*` belongs to both."""
        return tuple(cidr for cidr in cidrs if cidr == ALL or (":" in cidr) == (self.family is Family.IPV6))


def build(settings: Settings) -> Plan:
    """Build the plan. Pure: equal settings give equal plans."""
    nets = [Net(Family.IPV4, settings.loopback_cidr, PROXY_SOURCE)]
    if settings.ipv6:
        nets.append(Net(Family.IPV6, LOOPBACK_CIDR_IPV6, PROXY_SOURCE_IPV6))
    routed = settings.mode is Mode.TPROXY and bool(settings.inbound_ports)
    route = TproxyRoute(settings.tproxy_mark, settings.tproxy_route_table)
    return Plan(
        layout=settings.layout,
        chains=tuple(chain for net in nets for chain in gather(net.family, _pieces(settings, net))),
        routes=tuple(route._replace(family=net.family) for net in nets) if routed else (),
        addresses=(PROXY_SOURCE_IPV6,) if settings.ipv6 else (),
    )


def _pieces(settings: Settings, net: Net) -> Iterator[Piece]:
    tproxy = settings.mode is Mode.TPROXY
    yield from _excluded_interfaces(settings)
    yield from _dropped(settings)
    yield _nat("ISTIO_INBOUND", (TCP, to_port(str(settings.tunnel_port))), RETURN, reasons.TUNNEL)
    yield _nat("ISTIO_REDIRECT", (TCP,), redirect(settings.envoy_port), reasons.TO_OUTBOUND_PORT)
    yield _nat("ISTIO_IN_REDIRECT", (TCP,), redirect(settings.inbound_capture_port), reasons.TO_INBOUND_PORT)
    if settings.inbound_ports:
        yield from _tproxy_chains(settings, net) if tproxy else ()
        yield from _inbound(settings, net)
    yield from _outbound(settings, net)
    yield from dns_pieces(settings, net.family, net.of_family(settings.nameservers)) if settings.redirect_dns else ()
    yield from _marks(settings, net) if tproxy else ()


def _excluded_interfaces(settings: Settings) -> Iterator[Piece]:
    tables = (Table.NAT, Table.MANGLE) if settings.mode is Mode.TPROXY else (Table.NAT,)
    for table in tables:
        for name in settings.exclude_interfaces:
            why = reasons.INTERFACE_EXCLUDED.of(name)
            yield Piece(table, "PREROUTING", Rule((_in(name),), RETURN, why))
            yield Piece(table, "OUTPUT", Rule((Match(MatchKind.OUT_INTERFACE, name),), RETURN, why))
    for name in settings.virtual_interfaces:
        why = reasons.VIRTUAL_NOT_INBOUND.of(name)
        yield Piece(Table.NAT, "PREROUTING", Rule((_in(name),), RETURN, why), at_head=True)


def _dropped(settings: Settings) -> Iterator[Piece]:
    if not settings.drop_invalid:
        return
    invalid = Match(MatchKind.CTSTATE, "INVALID")
    yield _mangle("PREROUTING", (invalid,), jump("ISTIO_DROP"), reasons.INVALID_DROPPED)
    yield _mangle("ISTIO_DROP", (), Target(TargetKind.DROP), reasons.INVALID_DROPPED)


def _tproxy_chains(settings: Settings, net: Net) -> Iterator[Piece]:
    mark = settings.tproxy_mark
    yield _mangle("ISTIO_DIVERT", (), Target(TargetKind.MARK, mark=mark), reasons.TPROXY_MARKED)
    yield _mangle("ISTIO_DIVERT", (), Target(TargetKind.ACCEPT), reasons.TPROXY_ACCEPTED)
    target = Target(TargetKind.TPROXY, port=settings.inbound_capture_port, mark=mark)
    yield _mangle("ISTIO_TPROXY", (not_to(net.loopback), TCP), target, reasons.TPROXY_NEW)
    yield from _forwarded(settings)
    yield _mangle("ISTIO_INBOUND", (TCP, _marked(mark)), RETURN, reasons.TPROXY_OWN_MARK)
    own_source = (from_cidr(net.proxy_source), IN_LO, TCP)
    yield _mangle("ISTIO_INBOUND", own_source, RETURN, reasons.TPROXY_OWN_SOURCE.of(net.proxy_source))
    unmarked = Match(MatchKind.MARK, LOOP_MARK, negated=True)
    yield _mangle("ISTIO_INBOUND", (IN_LO, TCP, unmarked), RETURN, reasons.TPROXY_LOOPBACK)


def _forwarded(settings: Settings) -> Iterator[Piece]:
    """Keep TPROXY from what the pod forwards between interfaces that are not its own network's.

    Today's tool has no such rules. There, mangle takes a virtual machine's connections as inbound before nat sees them, and
    the replies on connections that are forwarded end in this pod, which does not know them.
    """
    for name in settings.virtual_interfaces:
        yield _mangle("ISTIO_INBOUND", (_in(name),), RETURN, reasons.VIRTUAL_NOT_INBOUND.of(name))
    if settings.virtual_interfaces or settings.exclude_interfaces:
        reply = Match(MatchKind.CTDIR, "REPLY")
        yield _mangle("ISTIO_INBOUND", (reply,), RETURN, reasons.TPROXY_REPLY)


def _inbound(settings: Settings, net: Net) -> Iterator[Piece]:
    make = _mangle if settings.mode is Mode.TPROXY else _nat
    yield make("PREROUTING", (TCP,), jump("ISTIO_INBOUND"), reasons.INBOUND)
    for cidr in net.of_family(settings.inbound_exclude_cidrs):
        yield make("ISTIO_INBOUND", (*from_cidrs(cidr), TCP), RETURN, reasons.INBOUND_CIDR_EXCLUDED.of(cidr))
    if settings.inbound_ports != (ALL,):
        for port in settings.inbound_ports:
            yield from _capture(settings, (to_port(port),), reasons.INBOUND_PORT_CAPTURED.of(port))
        return
    for port in settings.inbound_exclude_ports:
        yield make("ISTIO_INBOUND", (TCP, to_port(port)), RETURN, reasons.INBOUND_PORT_EXCLUDED.of(port))
    yield from _capture(settings, (), reasons.INBOUND_ALL_CAPTURED)


def _capture(settings: Settings, condition: tuple[Match, ...], why: Reason) -> Iterator[Piece]:
    matches = (TCP, *condition)
    if settings.mode is Mode.REDIRECT:
        yield _nat("ISTIO_INBOUND", matches, jump("ISTIO_IN_REDIRECT"), why)
        return
    known = Match(MatchKind.CTSTATE, "RELATED,ESTABLISHED")
    yield _mangle("ISTIO_INBOUND", (*matches, known), jump("ISTIO_DIVERT"), reasons.TPROXY_KNOWN)
    yield _mangle("ISTIO_INBOUND", matches, jump("ISTIO_TPROXY"), why)


def _outbound(settings: Settings, net: Net) -> Iterator[Piece]:
    chain = "ISTIO_OUTPUT"
    yield _nat("OUTPUT", (), jump(chain), reasons.OUTBOUND)
    for port in settings.outbound_exclude_ports:
        for protocol in (TCP, UDP):
            yield _nat(chain, (protocol, to_port(port)), RETURN, reasons.OUTBOUND_PORT_EXCLUDED.of(port))
    for item in settings.outbound_exclude_ports_for_uids:
        yield _nat(chain, of_user(item), RETURN, reasons.OUTBOUND_PORT_OF_UID_EXCLUDED.of(item.user))
    yield _nat(chain, (from_cidr(net.proxy_source), OUT_LO), RETURN, reasons.PROXY_SOURCE)
    if settings.mode is Mode.TPROXY:
        # Today's tool has no such rule. There, a proxy with user 0 and group 1337 depends on the rule for other users'
        # traffic, which shadows the group's rules.
        yield _nat(chain, (OUT_LO, TCP, _marked(settings.tproxy_mark)), RETURN, reasons.TPROXY_TO_APP)
    yield from _owners(settings, net)
    yield from _groups(settings)
    if settings.redirect_dns and is_captured(settings, net.of_family(settings.nameservers)):
        yield _nat(chain, (), jump("ISTIO_OUTPUT_DNS"), reasons.DNS)
    yield _nat(chain, to_cidr(net.loopback), RETURN, reasons.LOCALHOST)
    for cidr in net.of_family(settings.service_exclude_cidrs):
        yield _nat(chain, to_cidr(cidr), RETURN, reasons.OUTBOUND_CIDR_EXCLUDED.of(cidr))
    for port in settings.outbound_ports:
        yield _nat(chain, (TCP, to_port(port)), jump("ISTIO_REDIRECT"), reasons.OUTBOUND_PORT_CAPTURED.of(port))
    yield from _captured_destinations(settings, net)


def _owners(settings: Settings, net: Net) -> Iterator[Piece]:
    """Let the proxy's own traffic pass, but capture its calls to its own pod's services as inbound.

    The rule for other users' traffic within the pod names all owners at once and comes last. In today's tool there is one
    per owner, and that of the first user shadows the rules of all users and groups after it.
    """
    owners = owner_matches(settings)
    for owner in owners:
        hairpin, own = OWNER_REASONS[owner.kind]
        to_itself = (not_to(net.loopback), OUT_LO, TCP, _not_ports(settings, owner), owner)
        yield _nat("ISTIO_OUTPUT", to_itself, jump("ISTIO_IN_REDIRECT"), hairpin.of(owner.value))
        yield _nat("ISTIO_OUTPUT", (owner,), RETURN, own.of(owner.value))
    if any(cidr.startswith(LOOPBACK_NETWORKS) for cidr in settings.service_cidrs):
        return
    dns = (TCP, Match(MatchKind.DESTINATION_PORT, str(RESOLVER_PORT), negated=True)) if settings.redirect_dns else ()
    none = tuple(owner._replace(negated=True) for owner in owners)
    yield _nat("ISTIO_OUTPUT", (OUT_LO, *dns, *none), RETURN, reasons.APP_HAIRPIN)


def _not_ports(settings: Settings, owner: Match) -> Match:
    if settings.redirect_dns and owner.kind is MatchKind.UID_OWNER:
        return Match(MatchKind.DESTINATION_PORTS, f"{RESOLVER_PORT},{settings.tunnel_port}", negated=True)
    return Match(MatchKind.DESTINATION_PORT, str(settings.tunnel_port), negated=True)


def _groups(settings: Settings) -> Iterator[Piece]:
    if settings.owner_groups != (ALL,):
        none = tuple(Match(MatchKind.GID_OWNER, int(gid), negated=True) for gid in settings.owner_groups)
        why = reasons.GROUPS_ONLY.of(", ".join(settings.owner_groups)) if none else reasons.NO_GROUP
        yield _nat("ISTIO_OUTPUT", none, RETURN, why)
    for gid in settings.owner_groups_exclude:
        yield _nat("ISTIO_OUTPUT", (Match(MatchKind.GID_OWNER, int(gid)),), RETURN, reasons.GROUP_EXCLUDED.of(gid))


def _captured_destinations(settings: Settings, net: Net) -> Iterator[Piece]:
    for cidr in net.of_family(settings.service_cidrs):
        everywhere = cidr == ALL
        to = () if everywhere else to_cidr(cidr)
        why = reasons.OUTBOUND_ALL_CAPTURED if everywhere else reasons.OUTBOUND_CIDR_CAPTURED.of(cidr)
        yield _nat("ISTIO_OUTPUT", to, jump("ISTIO_REDIRECT"), why)
        for name in settings.virtual_interfaces:
            rule = Rule((*to, _in(name)), jump("ISTIO_REDIRECT"), reasons.VIRTUAL_CAPTURED.of(name))
            yield Piece(Table.NAT, "PREROUTING", rule, at_head=True)


def _marks(settings: Settings, net: Net) -> Iterator[Piece]:
    """Save marks in connections, so that an app that sees its client's address replies through the proxy."""
    ours = _marked(settings.tproxy_mark)
    yield _mangle("PREROUTING", (TCP, ours), Target(TargetKind.SAVE_MARK), reasons.MARK_SAVED)
    yield _mangle("OUTPUT", (OUT_LO, TCP, ours), RETURN, reasons.MARK_PRESENT)
    for owner in owner_matches(settings):
        to_itself = (not_to(net.loopback), OUT_LO, TCP, owner)
        yield _mangle("OUTPUT", to_itself, Target(TargetKind.MARK, mark=LOOP_MARK), reasons.MARK_HAIRPIN)
    connection = Match(MatchKind.CONNMARK, settings.tproxy_mark)
    yield _mangle("OUTPUT", (TCP, connection), Target(TargetKind.RESTORE_MARK), reasons.MARK_RESTORED)


def _nat(chain: str, matches: tuple[Match, ...], target: Target, why: Reason) -> Piece:
    return Piece(Table.NAT, chain, Rule(matches, target, why))


def _mangle(chain: str, matches: tuple[Match, ...], target: Target, why: Reason) -> Piece:
    return Piece(Table.MANGLE, chain, Rule(matches, target, why))


def _in(name: str) -> Match:
    return Match(MatchKind.IN_INTERFACE, name)


def _marked(mark: int) -> Match:
    return Match(MatchKind.MARK, mark)
