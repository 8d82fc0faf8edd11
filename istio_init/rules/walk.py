"""Walk one packet through a plan: what happens to it, and which rules decide. Pure.

It answers "why is this connection not captured?" without a kernel; the tests hold its answers to what real packets meet.
"""

from collections.abc import Callable
from ipaddress import ip_address, ip_network
from typing import NamedTuple

from istio_init.rules.model import Family, Match, MatchKind, Plan, Rule, Table, Target, TargetKind

# The hooks that a connection's first packet passes, in the kernel's order (netfilter packet flow).
OUTBOUND = tuple((table, "OUTPUT") for table in Table)
INBOUND = ((Table.RAW, "PREROUTING"), (Table.MANGLE, "PREROUTING"), (Table.NAT, "PREROUTING"), (Table.FILTER, "INPUT"))

DIVERTING = (TargetKind.REDIRECT, TargetKind.TPROXY, TargetKind.REJECT, TargetKind.DROP)
NOT_FINAL = (TargetKind.MARK, TargetKind.SAVE_MARK, TargetKind.RESTORE_MARK, TargetKind.ZONE)


class Packet(NamedTuple):
    """The first packet of a connection, as rules see it.

    Attributes:
        destination: the address that the sender asked for.
        port: its port.
        source: the sender's address.
        protocol: `tcp` or `udp`.
        outbound: whether a process in the namespace sends it.
        interface: where it leaves, or comes in.
        uid: the sender's user, if it is outbound.
        gid: the sender's group, if it is outbound.
        has_socket: whether a socket here already has this connection.
        ctstate: its conntrack state.
        source_port: the sender's port.
        mark: the mark that the packet bears when it begins its way.
        connmark: that of its connection.
    """

    destination: str
    port: int
    source: str = ""
    protocol: str = "tcp"
    outbound: bool = True
    interface: str = "eth0"
    uid: int = 0
    gid: int = 0
    has_socket: bool = False
    ctstate: str = "NEW"
    source_port: int = 0
    mark: int = 0
    connmark: int = 0


class Step(NamedTuple):
    """A rule that matched."""

    table: Table
    chain: str
    rule: Rule


class Walk(NamedTuple):
    """What happens to a packet.

    Attributes:
        outcome: the target that diverts or rejects it; None when it goes straight on.
        steps: the rules that matched, in order; the last one decided.
    """

    outcome: Target | None
    steps: tuple[Step, ...]


def walk(plan: Plan, packet: Packet) -> Walk:
    """Follow a packet through the chains of a plan."""
    family = Family.IPV6 if ip_address(packet.destination).version == 6 else Family.IPV4  # noqa: PLR2004 - IP's own number
    chains = {(chain.table, chain.name): (*chain.inserted, *chain.rules) for chain in plan.chains if chain.family is family}
    steps: list[Step] = []
    for table, hook in OUTBOUND if packet.outbound else INBOUND:
        outcome = _pass(chains, table, hook, packet, steps)
        if outcome is not None and outcome.kind in DIVERTING:
            return Walk(outcome, tuple(steps))
    return Walk(None, tuple(steps))


def _pass(
    chains: dict[tuple[Table, str], tuple[Rule, ...]],
    table: Table,
    name: str,
    packet: Packet,
    steps: list[Step],
) -> Target | None:
    """Give the target that ends the way through this table; None when the chain is left without one."""
    for rule in chains.get((table, name), ()):
        if not all(_matches(match, packet) for match in rule.matches):
            continue
        steps.append(Step(table, name, rule))
        match rule.target.kind:
            case TargetKind.RETURN:
                return None
            case TargetKind.JUMP:
                outcome = _pass(chains, table, rule.target.chain, packet, steps)
                if outcome is not None:
                    return outcome
            case kind if kind in NOT_FINAL:
                continue
            case _:
                return rule.target
    return None


def _matches(match: Match, packet: Packet) -> bool:
    return CONDITIONS[match.kind](packet, match.value) is not match.negated


def _in_cidr(address: str, cidr: int | str) -> bool:
    return ip_address(address) in ip_network(cidr)


def _in_range(port: int, ports: int | str) -> bool:
    first, _, last = str(ports).partition(":")
    return int(first) <= port <= int(last or first)


def _is_interface(name: str, wanted: int | str) -> bool:
    """Compare interfaces; a trailing + stands for anything (iptables(8))."""
    text = str(wanted)
    return name.startswith(text[:-1]) if text.endswith("+") else name == text


# When a condition holds, its negation aside.
CONDITIONS: dict[MatchKind, Callable[[Packet, int | str], bool]] = {
    MatchKind.SOURCE: lambda packet, cidr: _in_cidr(packet.source, cidr),
    MatchKind.DESTINATION: lambda packet, cidr: _in_cidr(packet.destination, cidr),
    MatchKind.IN_INTERFACE: lambda packet, name: not packet.outbound and _is_interface(packet.interface, name),
    MatchKind.OUT_INTERFACE: lambda packet, name: packet.outbound and _is_interface(packet.interface, name),
    MatchKind.PROTOCOL: lambda packet, name: packet.protocol == name,
    MatchKind.SOURCE_PORT: lambda packet, ports: _in_range(packet.source_port, ports),
    MatchKind.DESTINATION_PORT: lambda packet, ports: _in_range(packet.port, ports),
    MatchKind.DESTINATION_PORTS: lambda packet, ports: any(_in_range(packet.port, one) for one in str(ports).split(",")),
    MatchKind.UID_OWNER: lambda packet, uid: packet.outbound and packet.uid == uid,
    MatchKind.GID_OWNER: lambda packet, gid: packet.outbound and packet.gid == gid,
    MatchKind.SOCKET: lambda packet, _: packet.has_socket,
    MatchKind.CTSTATE: lambda packet, states: packet.ctstate in str(states).split(","),
    MatchKind.MARK: lambda packet, mark: packet.mark == mark,
    MatchKind.CONNMARK: lambda packet, mark: packet.connmark == mark,
    MatchKind.COMMENT: lambda packet, comment: True,  # noqa: ARG005 - it is for readers
}
