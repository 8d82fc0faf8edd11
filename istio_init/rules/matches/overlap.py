"""Whether two conditions can hold for the same packet, and whether one holds wherever the other does. Pure.

Only conditions on the same property are compared; what cannot be compared is taken to be possible, and not to be certain.
"""

from __future__ import annotations

from istio_init.core.light import TYPE_CHECKING
from istio_init.rules.matches import MATCHES
from istio_init.rules.model import MatchKind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from istio_init.rules.matches.kinds import Span
    from istio_init.rules.model import Match


def exclude(some: Iterable[Match], others: Iterable[Match]) -> bool:
    """Return whether no packet can satisfy all of both conjunctions."""
    others = tuple(others)
    return any(_excludes(one, other) for one in some for other in others)


def imply(known: Iterable[Match], asked: Iterable[Match]) -> bool:
    """Return whether each packet that satisfies all of `known` certainly satisfies all of `asked`."""
    known = tuple(known)
    return all(
        other.kind is MatchKind.COMMENT or any(one == other or _excludes(one, _opposite(other)) for one in known)
        for other in asked
    )


def _opposite(match: Match) -> Match:
    return match._replace(negated=not match.negated)


def _excludes(one: Match, other: Match) -> bool:
    scale = MATCHES[one.kind].scale
    if not scale or scale != MATCHES[other.kind].scale or (one.negated and other.negated):
        return False
    first, second = (MATCHES[match.kind].spans(match.value) for match in (one, other))
    if one.negated:
        return _cover(first, second)
    if other.negated:
        return _cover(second, first)
    return not any(a[0] <= b[1] and b[0] <= a[1] for a in first for b in second)  # type: ignore[operator]


def _cover(wide: tuple[Span, ...], narrow: tuple[Span, ...]) -> bool:
    return all(any(a[0] <= b[0] and b[1] <= a[1] for a in wide) for b in narrow)  # type: ignore[operator]
