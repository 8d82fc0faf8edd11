"""The layout of Istio 1.0: the rules that `tools/deb/istio-iptables.sh` of tag 1.0.5 was meant to write.

Chains are in the order in which that script creates them. Its bugs are not reproduced; the README's compatibility section
lists the differences.
"""

from __future__ import annotations

from istio_init.core.light import TYPE_CHECKING
from istio_init.rules.layouts import reasons
from istio_init.rules.layouts.parts import (
    OUT_LO,
    RETURN,
    TCP,
    from_cidrs,
    jump,
    not_to,
    of_user,
    redirect,
    to_cidr,
    to_port,
)
from istio_init.rules.model import (
    LOOPBACK_CIDR,
    SSH_PORT,
    Chain,
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
    from istio_init.rules.model import Reason
    from istio_init.rules.settings import Settings

NOT_TO_LOOPBACK = not_to(LOOPBACK_CIDR)


def build(settings: Settings) -> Plan:
    """Build the plan. Pure: equal settings give equal plans."""
    tproxy = settings.mode is Mode.TPROXY and bool(settings.inbound_ports)
    return Plan(
        layout=settings.layout,
        chains=(
            *_redirect_chains(settings),
            *(_tproxy_chains(settings) if tproxy else ()),
            *(_inbound_chains(settings) if settings.inbound_ports else ()),
            *_outbound_chains(settings),
            *(_closed_ipv6_chains() if settings.close_inbound_ipv6 else ()),
        ),
        routes=(TproxyRoute(settings.tproxy_mark, settings.tproxy_route_table),) if tproxy else (),
        # The old script ignored failures of ip6tables: many machines have none, and then no inbound IPv6 either.
        optional=frozenset({Family.IPV6}),
    )


def _redirect_chains(settings: Settings) -> tuple[Chain, ...]:
    return (
        _nat("ISTIO_REDIRECT", Rule((TCP,), redirect(settings.envoy_port), reasons.TO_OUTBOUND_PORT)),
        _nat("ISTIO_IN_REDIRECT", Rule((TCP,), redirect(settings.inbound_capture_port), reasons.TO_INBOUND_PORT)),
    )


def _tproxy_chains(settings: Settings) -> tuple[Chain, ...]:
    mark = settings.tproxy_mark
    return (
        _mangle(
            "ISTIO_DIVERT",
            Rule((), Target(TargetKind.MARK, mark=mark), reasons.TPROXY_MARKED),
            Rule((), Target(TargetKind.ACCEPT), reasons.TPROXY_ACCEPTED),
        ),
        _mangle(
            "ISTIO_TPROXY",
            Rule(
                (NOT_TO_LOOPBACK, TCP),
                Target(TargetKind.TPROXY, port=settings.inbound_capture_port, mark=mark),
                reasons.TPROXY_NEW,
            ),
        ),
    )


def _inbound_chains(settings: Settings) -> tuple[Chain, ...]:
    make = _mangle if settings.mode is Mode.TPROXY else _nat
    return (
        make("PREROUTING", Rule((TCP,), jump("ISTIO_INBOUND"), reasons.INBOUND)),
        make(
            "ISTIO_INBOUND",
            *(
                Rule((*from_cidrs(cidr), TCP), RETURN, reasons.INBOUND_CIDR_EXCLUDED.of(cidr))
                for cidr in settings.inbound_exclude_cidrs
            ),
            *_inbound_rules(settings),
        ),
    )


def _inbound_rules(settings: Settings) -> tuple[Rule, ...]:
    if settings.inbound_ports != (ALL,):
        return tuple(
            rule
            for port in settings.inbound_ports
            for rule in _capture(settings, (to_port(port),), reasons.INBOUND_PORT_CAPTURED.of(port))
        )
    return (
        Rule((TCP, to_port(str(SSH_PORT))), RETURN, reasons.SSH),
        *(
            Rule((TCP, to_port(port)), RETURN, reasons.INBOUND_PORT_EXCLUDED.of(port))
            for port in settings.inbound_exclude_ports
        ),
        *_capture(settings, (), reasons.INBOUND_ALL_CAPTURED),
    )


def _capture(settings: Settings, condition: tuple[Match, ...], why: Reason) -> tuple[Rule, ...]:
    matches = (TCP, *condition)
    if settings.mode is Mode.REDIRECT:
        return (Rule(matches, jump("ISTIO_IN_REDIRECT"), why),)
    # The old script only checked for a socket. That also matches one in TIME_WAIT, so a client that reused a port within a
    # minute bypassed Envoy. Only packets of an established connection have a socket of their own.
    established = Match(MatchKind.CTSTATE, "ESTABLISHED")
    return (
        Rule((*matches, established, Match(MatchKind.SOCKET)), jump("ISTIO_DIVERT"), reasons.TPROXY_SOCKET),
        Rule(matches, jump("ISTIO_TPROXY"), why),
    )


def _outbound_chains(settings: Settings) -> tuple[Chain, ...]:
    return (
        _nat("OUTPUT", Rule((TCP,), jump("ISTIO_OUTPUT"), reasons.OUTBOUND)),
        _nat(
            "ISTIO_OUTPUT",
            *(
                Rule(of_user(item), RETURN, reasons.OUTBOUND_PORT_OF_UID_EXCLUDED.of(item.user))
                for item in settings.outbound_exclude_ports_for_uids
            ),
            Rule((NOT_TO_LOOPBACK, OUT_LO), jump("ISTIO_REDIRECT"), reasons.HAIRPIN),
            *(Rule((Match(MatchKind.UID_OWNER, uid),), RETURN, reasons.PROXY_UID.of(uid)) for uid in settings.proxy_uids),
            *(Rule((Match(MatchKind.GID_OWNER, gid),), RETURN, reasons.PROXY_GID.of(gid)) for gid in settings.proxy_gids),
            Rule(to_cidr(LOOPBACK_CIDR), RETURN, reasons.LOCALHOST),
            *(
                Rule(to_cidr(cidr), RETURN, reasons.OUTBOUND_CIDR_EXCLUDED.of(cidr))
                for cidr in settings.service_exclude_cidrs
            ),
            *_captured_destinations(settings),
        ),
    )


def _captured_destinations(settings: Settings) -> tuple[Rule, ...]:
    if not settings.service_cidrs:
        return ()
    if settings.service_cidrs == (ALL,):
        return (Rule((), jump("ISTIO_REDIRECT"), reasons.OUTBOUND_ALL_CAPTURED),)
    return (
        *(
            Rule(to_cidr(cidr), jump("ISTIO_REDIRECT"), reasons.OUTBOUND_CIDR_CAPTURED.of(cidr))
            for cidr in settings.service_cidrs
        ),
        Rule((), RETURN, reasons.OUTBOUND_OTHERS),
    )


def _closed_ipv6_chains() -> tuple[Chain, ...]:
    family, table = Family.IPV6, Table.FILTER
    established = (Match(MatchKind.CTSTATE, "ESTABLISHED"),)
    unreachable = Target(TargetKind.REJECT, reject_with="icmp6-port-unreachable")
    return (
        Chain(family, table, "INPUT", (Rule((), jump("ISTIO_INBOUND"), reasons.IPV6_INBOUND),)),
        Chain(
            family,
            table,
            "ISTIO_INBOUND",
            (
                Rule(established, Target(TargetKind.ACCEPT), reasons.IPV6_REPLIES),
                Rule((), unreachable, reasons.IPV6_REJECTED),
            ),
        ),
    )


def _nat(name: str, *rules: Rule) -> Chain:
    return Chain(Family.IPV4, Table.NAT, name, rules)


def _mangle(name: str, *rules: Rule) -> Chain:
    return Chain(Family.IPV4, Table.MANGLE, name, rules)
