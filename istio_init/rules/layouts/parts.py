"""Building blocks of layouts: short names for matches and targets, and chains assembled from single rules."""

from __future__ import annotations

from istio_init.core.light import TYPE_CHECKING, NamedTuple
from istio_init.rules.model import (
    ANY_IPV4,
    ANY_IPV6,
    BUILTIN_CHAINS,
    FIRST,
    OURS,
    Chain,
    Family,
    Match,
    MatchKind,
    Rule,
    Table,
    Target,
    TargetKind,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from istio_init.rules.model import Plan
    from istio_init.rules.settings import Settings
    from istio_init.rules.values import PortsOfUser

TCP = Match(MatchKind.PROTOCOL, "tcp")
UDP = Match(MatchKind.PROTOCOL, "udp")
OUT_LO = Match(MatchKind.OUT_INTERFACE, "lo")
IN_LO = Match(MatchKind.IN_INTERFACE, "lo")
RETURN = Target(TargetKind.RETURN)


class Piece(NamedTuple):
    """One rule and its position.

    Attributes:
        at_head: whether it is inserted at the head of its chain, before earlier pieces at the head.
    """

    table: Table
    chain: str
    rule: Rule
    at_head: bool = False


def gather(family: Family, pieces: Iterable[Piece]) -> tuple[Chain, ...]:
    """Assemble pieces into chains, in the order in which the pieces first name them."""
    appended: dict[tuple[Table, str], list[Rule]] = {}
    inserted: dict[tuple[Table, str], list[Rule]] = {}  # the last one stands first
    for piece in pieces:
        place = (piece.table, piece.chain)
        rules = appended.setdefault(place, [])
        (inserted.setdefault(place, []) if piece.at_head else rules).append(_signed(piece))
    return tuple(
        Chain(family, table, name, tuple(rules), tuple(reversed(inserted.get((table, name), ()))))
        for (table, name), rules in appended.items()
    )


def _signed(piece: Piece) -> Rule:
    """Add our comment to a rule in a built-in chain, unless its jump to a chain of ours identifies it."""
    if piece.chain not in BUILTIN_CHAINS or piece.rule.target.kind is TargetKind.JUMP:
        return piece.rule
    return piece.rule._replace(matches=(*piece.rule.matches, OURS))


def first(plan: Plan) -> Plan:
    """Move all rules in built-in chains to the head.

    They have a comment of their own, jumps as well. Without it, rules that stand first because they were there first could
    not be told from these, and a plan that no longer asks for the head would be taken for one that is in place.
    """
    return plan._replace(chains=tuple(_at_head(chain) if chain.name in BUILTIN_CHAINS else chain for chain in plan.chains))


def _at_head(chain: Chain) -> Chain:
    rules = (*chain.inserted, *chain.rules)
    unsigned = (rule._replace(matches=tuple(match for match in rule.matches if match != OURS)) for rule in rules)
    signed = tuple(rule._replace(matches=(*rule.matches, FIRST)) for rule in unsigned)
    return chain._replace(rules=(), inserted=signed)


def jump(chain: str) -> Target:
    """Continue in a chain of ours."""
    return Target(TargetKind.JUMP, chain=chain)


def redirect(port: int) -> Target:
    """Redirect a connection to a local port."""
    return Target(TargetKind.REDIRECT, port=port)


def to_port(port: str) -> Match:
    """Match a destination port or range."""
    return Match(MatchKind.DESTINATION_PORT, port)


def to_cidr(cidr: str) -> tuple[Match, ...]:
    """Match a destination; () for the whole address space, for which the kernel would not list a match."""
    return () if cidr in (ANY_IPV4, ANY_IPV6) else (Match(MatchKind.DESTINATION, cidr),)


def from_cidr(cidr: str) -> Match:
    """Match a source."""
    return Match(MatchKind.SOURCE, cidr)


def from_cidrs(cidr: str) -> tuple[Match, ...]:
    """Match senders; as with `to_cidr`, the whole address space needs no match."""
    return () if cidr in (ANY_IPV4, ANY_IPV6) else (from_cidr(cidr),)


def of_user(item: PortsOfUser) -> tuple[Match, ...]:
    """Match what one user sends to some ports."""
    return (Match(MatchKind.PROTOCOL, item.protocol), to_port(item.ports), Match(MatchKind.UID_OWNER, int(item.user)))


def not_to(cidr: str) -> Match:
    """Match every other destination."""
    return Match(MatchKind.DESTINATION, cidr, negated=True)


def owner_matches(settings: Settings) -> tuple[Match, ...]:
    """Match the proxy's packets: one match for each of its users, then one for each of its groups."""
    return (
        *(Match(MatchKind.UID_OWNER, uid) for uid in settings.proxy_uids),
        *(Match(MatchKind.GID_OWNER, gid) for gid in settings.proxy_gids),
    )
