"""Chooses the connections that show whether rules work, and computes where each must end. Pure.

The settings determine which connections to probe, and a walk through the plan where they must end.
"""

from __future__ import annotations

from ipaddress import IPv4Network, ip_network
from typing import TYPE_CHECKING, NamedTuple

from istio_init.rules.model import (
    LOOPBACK_CIDR,
    LOOPBACK_CIDR_IPV6,
    PROXY_SOURCE,
    PROXY_SOURCE_IPV6,
    RESOLVER_PORT,
    Family,
    Mode,
    TargetKind,
)
from istio_init.rules.values import ALL, PORT_MAX
from istio_init.rules.walk import Packet, walk

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from ipaddress import IPv6Network

    from istio_init.rules.model import Plan
    from istio_init.rules.settings import Settings
    from istio_init.rules.walk import Step

SAMPLES = 8  # per list: a mesh may exclude thousands of CIDRs, and each path costs a socket
# Documentation addresses, which no host should have (RFC 5737, RFC 3849); the first that is not local is used.
NOWHERE = {
    Family.IPV4: ("203.0.113.77", "192.0.2.77", "198.51.100.77"),
    Family.IPV6: ("2001:db8::77", "2001:db8:1::77"),
}
# The two ends of the probe network, also documentation addresses.
INTERFACE = "istio-probe"
INSIDE = {Family.IPV4: "198.51.100.253", Family.IPV6: "2001:db8:ffff::1"}
OUTSIDE = {Family.IPV4: "198.51.100.254", Family.IPV6: "2001:db8:ffff::2"}
LOCALHOST = {Family.IPV4: LOOPBACK_CIDR, Family.IPV6: LOOPBACK_CIDR_IPV6}
OWN_POD = {Family.IPV4: PROXY_SOURCE, Family.IPV6: PROXY_SOURCE_IPV6}
LO = "lo"
ANYBODY = range(65534, 0, -1)  # ids to choose from; the first is that of `nobody`
POLICY_ROUTE = "in by policy route"
SINGLE_PURPOSE = frozenset({"ISTIO_REDIRECT", "ISTIO_IN_REDIRECT", "ISTIO_TPROXY"})


class Path(NamedTuple):
    """A connection to probe.

    Attributes:
        what: short description of its kind.
        packet: its first packet, as rules see it.
        expected: the proxy's port that must receive it; None if it must bypass the proxy.
        why: the reason of the rule that decides.
        rejected: whether it must be rejected.
    """

    family: Family
    what: str
    packet: Packet
    expected: int | None
    why: str
    rejected: bool = False

    @property
    def leaves_pod(self) -> bool:
        """Whether it leaves the pod unless captured."""
        return self.packet.outbound and self.packet.interface == INTERFACE

    @property
    def end(self) -> tuple[Family, int] | None:
        """The port of this pod at which it must arrive; None if it is not TCP, is captured, or leaves the pod."""
        straight = self.expected is None and self.packet.protocol == "tcp"
        return (self.family, self.packet.port) if straight and not self.leaves_pod else None

    def __str__(self) -> str:
        """Return the path's description for the log."""
        address = f"[{self.packet.destination}]" if self.family is Family.IPV6 else self.packet.destination
        owner = f" of uid {self.packet.uid}, gid {self.packet.gid}" if self.packet.outbound else ""
        return f"{self.family} {self.what} {self.packet.protocol} {address}:{self.packet.port}{owner}"


class ProbeContext(NamedTuple):
    """The circumstances in which connections are probed.

    Attributes:
        own: user and group of this process.
        app: user and group of a process that is not the proxy.
        local: all addresses of the network namespace.
        mark: the mark of packets to the probe network; 0 if there is none.
        probe_port: the port to use where no flag names one.
    """

    own: tuple[int, int]
    app: tuple[int, int]
    local: frozenset[str]
    mark: int
    probe_port: int


def choose_app(settings: Settings, uid: int, gid: int) -> tuple[int, int]:
    """Return a user and group whose connections are captured: this process's own, if possible.

    Args:
        settings: the settings, which name the users and groups that are not captured.
        uid: this process's user.
        gid: this process's group.
    """
    groups = ANYBODY if settings.owner_groups == (ALL,) else map(int, settings.owner_groups)
    proxy_gids = {*settings.proxy_gids, *map(int, settings.owner_groups_exclude)}
    own = (gid,) if settings.owner_groups == (ALL,) or str(gid) in settings.owner_groups else ()
    return (
        next(one for one in (uid, *ANYBODY) if one not in settings.proxy_uids),
        next((one for one in (*own, *groups) if one not in proxy_gids), gid),
    )


def paths(settings: Settings, plan: Plan, context: ProbeContext) -> tuple[Path, ...]:
    """Return the paths of a plan, IPv4 first, without duplicates."""
    context = context._replace(probe_port=_probe_port(settings, context.probe_port))
    found: dict[tuple[Family, Packet], Path] = {}
    for family in plan.families():
        for what, packet in (
            *_outbound(settings, family, context),
            *_inbound(settings, family, context),
            *_dns(settings, family, context),
        ):
            outcome, steps = walk(plan, packet)
            expected = outcome.port if outcome else None
            if what == POLICY_ROUTE and expected is None:
                continue  # only captured packets are routed
            rejected = bool(steps) and steps[-1].rule.target.kind is TargetKind.REJECT
            found.setdefault((family, packet), Path(family, what, packet, expected, _reason(steps), rejected))
    return tuple(found.values())


def unchecked(settings: Settings) -> Iterator[str]:
    """Yield descriptions of requested items that are not probed."""
    lists = {
        "-i": settings.service_cidrs,
        "-x": settings.service_exclude_cidrs,
        "-q": settings.outbound_ports,
        "-o": settings.outbound_exclude_ports,
        "-b": settings.inbound_ports,
        "-d": settings.inbound_exclude_ports,
    }
    for flag, items in lists.items():
        if len(items) > SAMPLES:
            yield f"{len(items) - SAMPLES} more items of {flag}"
    if settings.inbound_exclude_cidrs:
        yield "the senders of --exclude-inbound-cidrs"
    others = len(settings.outbound_exclude_ports_for_uids) - SAMPLES
    if others > 0:
        yield f"{others} more items of --exclude-outbound-ports-for-uids"
    if settings.exclude_interfaces or settings.virtual_interfaces:
        yield "the interfaces of -c and -k"


def _reason(steps: tuple[Step, ...]) -> str:
    """Return the reason of the rule that decides; for a single-purpose chain, that is the rule that jumps to it."""
    deciding = [step.rule for step in steps if step.chain not in SINGLE_PURPOSE]
    if deciding and (steps[-1].chain in SINGLE_PURPOSE or deciding[-1].target.kind is not TargetKind.JUMP):
        return deciding[-1].why
    return "no rule captures it"


def _probe_port(settings: Settings, wanted: int) -> int:
    """Return the first port, from the wanted one up, that no flag excludes, because an excluded port shows no capture."""
    excluded = [item.partition(":") for item in (*settings.inbound_exclude_ports, *settings.outbound_exclude_ports)]
    ranges = [range(int(first), int(last or first) + 1) for first, _, last in excluded]
    own = (settings.envoy_port, settings.inbound_capture_port, settings.tunnel_port, settings.dns_port)
    candidates = range(wanted, PORT_MAX + 1)
    return next((port for port in candidates if port not in own and not any(port in one for one in ranges)), wanted)


def _outbound(settings: Settings, family: Family, context: ProbeContext) -> Iterator[tuple[str, Packet]]:
    address = next((one for one in NOWHERE[family] if one not in context.local), "")
    if not address:
        return
    app = _Sender(family, context, *context.app)
    yield "out", app.to(address, context.probe_port)
    for cidr in (*_sample(settings.service_cidrs), *_sample(settings.service_exclude_cidrs)):
        inside = _address_in(cidr, family, context.local)
        if inside:
            yield "out", app.to(inside, context.probe_port)
    for ports in (settings.outbound_ports, settings.outbound_exclude_ports):
        for port in _sample(ports):
            yield "out", app.to(address, _first(port))
    yield from _users(settings, family, context, address)
    own_pod = OWN_POD[family].partition("/")[0]
    for owner in _proxies(settings, context):
        proxy = _Sender(family, context, *owner)
        yield "proxy out", proxy.to(address, context.probe_port)
        if family is Family.IPV4 or own_pod in context.local:
            yield "proxy to its own pod", proxy.to(own_pod, context.probe_port)
    groups = [*map(int, _sample(settings.owner_groups_exclude))]
    if settings.owner_groups != (ALL,):
        groups.append(next(one for one in ANYBODY if str(one) not in settings.owner_groups))
    for group in groups:
        yield "group out", _Sender(family, context, context.app[0], group).to(address, context.probe_port)


def _users(settings: Settings, family: Family, context: ProbeContext, address: str) -> Iterator[tuple[str, Packet]]:
    """Return connections of users some of whose destination ports are left alone."""
    for item in settings.outbound_exclude_ports_for_uids[:SAMPLES]:
        if item.protocol == "tcp":
            yield "user out", _Sender(family, context, int(item.user), context.app[1]).to(address, _first(item.ports))


def _proxies(settings: Settings, context: ProbeContext) -> Iterator[tuple[int, int]]:
    """Yield users and groups one of which is the proxy's, and this process's own if one of them is."""
    uid, gid = context.app
    yield from ((one, gid) for one in settings.proxy_uids[:SAMPLES])
    yield from ((uid, one) for one in settings.proxy_gids[:SAMPLES])
    if context.own[0] in settings.proxy_uids or context.own[1] in settings.proxy_gids:
        yield context.own


def _inbound(settings: Settings, family: Family, context: ProbeContext) -> Iterator[tuple[str, Packet]]:
    # The proxy's own ports are listened on while paths are tried, so that who comes straight cannot be told.
    taken = (settings.envoy_port, settings.inbound_capture_port, settings.dns_port)
    ports = [context.probe_port, *map(_first, (*_sample(settings.inbound_ports), *_sample(settings.inbound_exclude_ports)))]
    if settings.mode is Mode.REDIRECT:
        ports.append(settings.tunnel_port)
    for port in ports:
        if port not in taken:
            yield "in", Packet(INSIDE[family], port, OUTSIDE[family], outbound=False, interface=INTERFACE)
    if settings.mode is Mode.TPROXY:
        # The destination is not a local address, so that only TPROXY's policy route can deliver it to the proxy.
        for address in [one for one in NOWHERE[family] if one not in context.local][:1]:
            port = context.probe_port if settings.inbound_ports in ((), (ALL,)) else _first(settings.inbound_ports[0])
            yield POLICY_ROUTE, Packet(address, port, OUTSIDE[family], outbound=False, interface=INTERFACE)


def _dns(settings: Settings, family: Family, context: ProbeContext) -> Iterator[tuple[str, Packet]]:
    if not settings.redirect_dns:
        return
    servers = NOWHERE[family][:1] if settings.capture_all_dns else settings.nameservers
    for server in servers:
        if (":" in server) == (family is Family.IPV6):
            for protocol in ("udp", "tcp"):
                yield "dns", _Sender(family, context, *context.app).to(server, RESOLVER_PORT, protocol)
            if server not in context.local:
                proxy = _Sender(family, context, settings.proxy_uids[0], context.app[1])
                yield "proxy's dns", proxy.to(server, RESOLVER_PORT, "udp")


class _Sender(NamedTuple):
    family: Family
    context: ProbeContext
    uid: int
    gid: int

    def to(self, address: str, port: int, protocol: str = "tcp") -> Packet:
        own = address in self.context.local or ip_network(address).is_loopback
        return Packet(
            address,
            port,
            source=LOCALHOST[self.family].partition("/")[0] if own else INSIDE[self.family],
            protocol=protocol,
            interface=LO if own else INTERFACE,
            uid=self.uid,
            gid=self.gid,
            mark=self.context.mark,
        )


def _sample(items: tuple[str, ...]) -> Iterable[str]:
    return (item for item in items[:SAMPLES] if item != ALL)


def _first(port: str) -> int:
    return int(port.partition(":")[0])


def _address_in(cidr: str, family: Family, local: frozenset[str]) -> str:
    """Return an address of a network to which a connection can be opened and would leave this host, or ""."""
    network = ip_network(cidr)
    if (isinstance(network, IPv4Network)) is not (family is Family.IPV4):
        return ""
    return next((address for address in _candidates(network) if address not in local), "")


def _candidates(network: IPv4Network | IPv6Network) -> Iterator[str]:
    for index in (1, -2, 0):
        if -network.num_addresses <= index < network.num_addresses:
            address = network[index]
            if not (address.is_loopback or address.is_multicast or address.is_unspecified or address.is_link_local):
                yield str(address)
