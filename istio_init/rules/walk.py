"""Follows one packet through a plan: what happens to it, and which rules decide. Pure.

It answers "why is this connection not captured?" without a kernel; the tests compare its answers with real packets.
"""

from ipaddress import ip_address

from istio_init.core.light import NamedTuple
from istio_init.rules.matches import MATCHES, TARGETS
from istio_init.rules.model import Family, Match, Plan, Rule, Table, Target
from istio_init.rules.packet import Packet

__all__ = ["INBOUND", "OUTBOUND", "Packet", "Step", "Walk", "walk"]

# The hooks that the first packet of a connection traverses, in the kernel's order (netfilter packet flow).
OUTBOUND = tuple((table, "OUTPUT") for table in Table)
INBOUND = ((Table.RAW, "PREROUTING"), (Table.MANGLE, "PREROUTING"), (Table.NAT, "PREROUTING"), (Table.FILTER, "INPUT"))


class Step(NamedTuple):
    """A rule that matched; `rule.reason.id` identifies it."""

    table: Table
    chain: str
    rule: Rule


class Walk(NamedTuple):
    """What happens to a packet.

    Attributes:
        outcome: the target that diverts or rejects it; None if it passes unchanged.
        steps: the rules that matched, in order; the last one decided.
    """

    outcome: Target | None
    steps: tuple[Step, ...]


def walk(plan: Plan, packet: Packet) -> Walk:
    """Follow a packet through the chains of a plan.

    Raises:
        ValueError: the packet's destination is not an IP address.
    """
    family = Family.IPV6 if ip_address(packet.destination).version == 6 else Family.IPV4  # noqa: PLR2004 - IP's own number
    chains = {(chain.table, chain.name): (*chain.inserted, *chain.rules) for chain in plan.chains if chain.family is family}
    steps: list[Step] = []
    for table, hook in OUTBOUND if packet.outbound else INBOUND:
        outcome = _pass(chains, table, hook, packet, steps)
        if outcome is not None and TARGETS[outcome.kind].effect == "diverts":
            return Walk(outcome, tuple(steps))
    return Walk(None, tuple(steps))


def _pass(
    chains: dict[tuple[Table, str], tuple[Rule, ...]],
    table: Table,
    name: str,
    packet: Packet,
    steps: list[Step],
) -> Target | None:
    """Return the target that ends the traversal of this table, or None if the chain returns; append matches to `steps`."""
    for rule in chains.get((table, name), ()):
        if not all(_matches(match, packet) for match in rule.matches):
            continue
        steps.append(Step(table, name, rule))
        match TARGETS[rule.target.kind].effect:
            case "returns":
                return None
            case "jumps":
                outcome = _pass(chains, table, rule.target.chain, packet, steps)
                if outcome is not None:
                    return outcome
            case "ends" | "diverts":
                return rule.target
    return None


def _matches(match: Match, packet: Packet) -> bool:
    return MATCHES[match.kind].holds(packet, match.value) is not match.negated
