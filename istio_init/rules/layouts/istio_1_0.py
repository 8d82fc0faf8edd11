"""The layout of Istio 1.0: what `tools/deb/istio-iptables.sh` of tag 1.0.5 meant to write.

Chains come in the order in which that script made them. Where it was wrong, the rule here is what it should have been, and
the README's compatibility section says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.rules.layouts.parts import OUT_LO, RETURN, TCP, jump, not_to, redirect, to_cidr, to_port
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
from istio_init.rules.options import ISTIO_1_0
from istio_init.rules.values import ALL

if TYPE_CHECKING:
    from istio_init.rules.settings import Settings

NOT_TO_LOOPBACK = not_to(LOOPBACK_CIDR)


def build(settings: Settings) -> Plan:
    """Make the plan; pure, the same settings always give the same plan."""
    tproxy = settings.mode is Mode.TPROXY and bool(settings.inbound_ports)
    return Plan(
        layout=ISTIO_1_0,
        chains=(
            *_redirect_chains(settings),
            *(_tproxy_chains(settings) if tproxy else ()),
            *(_inbound_chains(settings) if settings.inbound_ports else ()),
            *_outbound_chains(settings),
            *(_closed_ipv6_chains() if settings.close_inbound_ipv6 else ()),
        ),
        routes=(TproxyRoute(settings.tproxy_mark, settings.tproxy_route_table),) if tproxy else (),
        # The old script went on when ip6tables failed: many machines have none, and then nothing comes in that way.
        optional=frozenset({Family.IPV6}),
    )


def _redirect_chains(settings: Settings) -> tuple[Chain, ...]:
    return (
        _nat(
            "ISTIO_REDIRECT",
            Rule((TCP,), redirect(settings.envoy_port), "outbound connections go to Envoy's outbound port"),
        ),
        _nat(
            "ISTIO_IN_REDIRECT",
            Rule((TCP,), redirect(settings.inbound_capture_port), "inbound connections go to Envoy's inbound port"),
        ),
    )


def _tproxy_chains(settings: Settings) -> tuple[Chain, ...]:
    mark = settings.tproxy_mark
    return (
        _mangle(
            "ISTIO_DIVERT",
            Rule((), Target(TargetKind.MARK, mark=mark), "marked packets are routed to this host, where Envoy listens"),
            Rule((), Target(TargetKind.ACCEPT), "nothing more is to be done in this table"),
        ),
        _mangle(
            "ISTIO_TPROXY",
            Rule(
                (NOT_TO_LOOPBACK, TCP),
                Target(TargetKind.TPROXY, port=settings.inbound_capture_port, mark=mark),
                "a new connection is handed to Envoy's inbound port with both addresses as they were",
            ),
        ),
    )


def _inbound_chains(settings: Settings) -> tuple[Chain, ...]:
    make = _mangle if settings.mode is Mode.TPROXY else _nat
    return (
        make("PREROUTING", Rule((TCP,), jump("ISTIO_INBOUND"), "connections from outside the pod are looked at")),
        make("ISTIO_INBOUND", *_inbound_rules(settings)),
    )


def _inbound_rules(settings: Settings) -> tuple[Rule, ...]:
    if settings.inbound_ports != (ALL,):
        return tuple(
            rule
            for port in settings.inbound_ports
            for rule in _capture(settings, (to_port(port),), f"port {port} is captured (-b)")
        )
    return (
        Rule((TCP, to_port(str(SSH_PORT))), RETURN, "SSH is never captured: an operator must get in"),
        *(Rule((TCP, to_port(port)), RETURN, f"port {port} is excluded (-d)") for port in settings.inbound_exclude_ports),
        *_capture(settings, (), "every other port is captured (-b '*')"),
    )


def _capture(settings: Settings, condition: tuple[Match, ...], why: str) -> tuple[Rule, ...]:
    matches = (TCP, *condition)
    if settings.mode is Mode.REDIRECT:
        return (Rule(matches, jump("ISTIO_IN_REDIRECT"), why),)
    known = "a packet of a connection that a socket here already has goes straight to that socket"
    # The old script looked for a socket only. That also finds one in TIME_WAIT, so a client that used a port again within
    # a minute reached the app around Envoy. Only a packet of an established connection can have its own socket.
    established = Match(MatchKind.CTSTATE, "ESTABLISHED")
    return (
        Rule((*matches, established, Match(MatchKind.SOCKET)), jump("ISTIO_DIVERT"), known),
        Rule(matches, jump("ISTIO_TPROXY"), why),
    )


def _outbound_chains(settings: Settings) -> tuple[Chain, ...]:
    return (
        _nat("OUTPUT", Rule((TCP,), jump("ISTIO_OUTPUT"), "connections that this pod opens are looked at")),
        _nat(
            "ISTIO_OUTPUT",
            Rule(
                (NOT_TO_LOOPBACK, OUT_LO),
                jump("ISTIO_REDIRECT"),
                "a pod that calls itself by its own or its service's address goes through Envoy",
            ),
            *(
                Rule((Match(MatchKind.UID_OWNER, uid),), RETURN, f"the proxy's own traffic (uid {uid}) must not loop")
                for uid in settings.proxy_uids
            ),
            *(
                Rule((Match(MatchKind.GID_OWNER, gid),), RETURN, f"the proxy's own traffic (gid {gid}) must not loop")
                for gid in settings.proxy_gids
            ),
            Rule(to_cidr(LOOPBACK_CIDR), RETURN, "containers of a pod talk to each other directly over localhost"),
            *(
                Rule(to_cidr(cidr), RETURN, f"destination {cidr} is excluded (-x)")
                for cidr in settings.service_exclude_cidrs
            ),
            *_captured_destinations(settings),
        ),
    )


def _captured_destinations(settings: Settings) -> tuple[Rule, ...]:
    if not settings.service_cidrs:
        return ()
    if settings.service_cidrs == (ALL,):
        return (Rule((), jump("ISTIO_REDIRECT"), "every other destination is captured (-i '*')"),)
    return (
        *(
            Rule(to_cidr(cidr), jump("ISTIO_REDIRECT"), f"destination {cidr} is captured (-i)")
            for cidr in settings.service_cidrs
        ),
        Rule((), RETURN, "no other destination is captured"),
    )


def _closed_ipv6_chains() -> tuple[Chain, ...]:
    family, table = Family.IPV6, Table.FILTER
    return (
        Chain(
            family,
            table,
            "INPUT",
            (Rule((), jump("ISTIO_INBOUND"), "IPv6 from outside is looked at: no rule here captures it"),),
        ),
        Chain(
            family,
            table,
            "ISTIO_INBOUND",
            (
                Rule(
                    (Match(MatchKind.CTSTATE, "ESTABLISHED"),),
                    Target(TargetKind.ACCEPT),
                    "answers to connections that this pod opened come in",
                ),
                Rule(
                    (),
                    Target(TargetKind.REJECT, reject_with="icmp6-port-unreachable"),
                    "other IPv6 would go around Envoy (open it: ENABLE_INBOUND_IPV6=1)",
                ),
            ),
        ),
    )


def _nat(name: str, *rules: Rule) -> Chain:
    return Chain(Family.IPV4, Table.NAT, name, rules)


def _mangle(name: str, *rules: Rule) -> Chain:
    return Chain(Family.IPV4, Table.MANGLE, name, rules)
