"""Merges consecutive rules that differ in one value into one rule with a set: 10,000 excluded CIDRs become one lookup.

Only neighbours are merged, and only if target, reason and all other matches are the same, so the order in which rules apply
to a packet does not change. A packet that matches two of the rules meets their target once instead of twice, which makes no
difference: a verdict ends the traversal, and setting a mark or a zone is idempotent.

Values are reduced to the fewest CIDRs and port ranges. nf_tables merges overlapping and adjacent ones itself, so this is
also the form in which its listing is read; nf_tables takes 7 ms per 1,000 destinations for it, this module 3 ms.
"""

from __future__ import annotations

from istio_init.core.light import TYPE_CHECKING, NamedTuple
from istio_init.rules.matches import MATCHES
from istio_init.rules.model import Match, Reason, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

COMMENT_BYTES = 128  # NFTNL_UDATA_COMMENT_MAXLEN of libnftnl


class Pattern(NamedTuple):
    """How rules that can be merged differ.

    Attributes:
        place: the index of the only match in which they differ.
        tells_value: whether their reasons contain the value of that match.
    """

    place: int
    tells_value: bool


class Joined(NamedTuple):
    """Consecutive rules, merged into one.

    Attributes:
        rule: the first of them, with a reason for all of them.
        place: the index of the match to which `values` apply instead of its own value; None for a single rule.
        values: the values of that match, in order, reduced to the fewest.
    """

    rule: Rule
    place: int | None = None
    values: tuple[int | str, ...] = ()


def join(rules: Iterable[Rule]) -> Iterator[Joined]:
    """Merge the rules of one chain where possible."""
    run: list[Rule] = []
    pattern: Pattern | None = None
    for rule in rules:
        if pattern is None and run:
            pattern = _pattern(run[0], rule)
        if pattern and _fits(rule, run[0], pattern):
            run.append(rule)
            continue
        if run:
            yield _joined(run, pattern)
        run, pattern = [rule], None
    if run:
        yield _joined(run, pattern)


def canonical(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """Return equivalent rules in the form in which they are read from a listing."""
    return tuple(rule for joined in join(rules) for rule in _apart(joined))


def _pattern(one: Rule, other: Rule) -> Pattern | None:
    """Return the pattern by which two rules can be merged, or None if they cannot."""
    if len(one.matches) != len(other.matches):
        return None
    places = [place for place, match in enumerate(one.matches) if match != other.matches[place]]
    if len(places) != 1 or not MATCHES[one.matches[places[0]].kind].joins or one.matches[places[0]].negated:
        return None
    pattern = Pattern(places[0], tells_value=one.reason.value == str(one.matches[places[0]].value))
    return pattern if _fits(other, one, pattern) else None


def _fits(rule: Rule, first: Rule, pattern: Pattern) -> bool:
    """Return whether a rule and its reason differ from the first rule's only in the pattern's value."""
    if len(rule.matches) != len(first.matches) or rule.target != first.target:
        return False
    place = pattern.place
    match, original = rule.matches[place], first.matches[place]
    if match.kind is not original.kind or match.negated:
        return False
    if not _has_the_same_reason(rule, first, match if pattern.tells_value else None):
        return False
    return rule.matches[:place] == first.matches[:place] and rule.matches[place + 1 :] == first.matches[place + 1 :]


def _has_the_same_reason(rule: Rule, first: Rule, named: Match | None) -> bool:
    """Return whether a rule has the reason of the first one; `named` is its match whose value the reason names, if any."""
    reason, other = rule.reason, first.reason
    value = other.value if named is None else str(named.value)
    return reason.id == other.id and reason.template == other.template and reason.value == value


def _joined(rules: list[Rule], pattern: Pattern | None) -> Joined:
    if pattern is None:
        return Joined(rules[0])
    known = MATCHES[rules[0].matches[pattern.place].kind]
    values = [rule.matches[pattern.place].value for rule in rules]
    reason = _reason(rules[0].reason, values) if pattern.tells_value else rules[0].reason
    return Joined(rules[0]._replace(reason=reason), pattern.place, known.tidy(values))


def _apart(joined: Joined) -> Iterator[Rule]:
    rule, place, values = joined
    if place is None:
        yield rule._replace(matches=tuple(_canonical(match) for match in rule.matches))
        return
    before, kind, after = rule.matches[:place], rule.matches[place].kind, rule.matches[place + 1 :]
    for value in values:
        yield rule._replace(matches=(*before, Match(kind, value), *after))


def _canonical(match: Match) -> Match:
    return match._replace(value=MATCHES[match.kind].canonical(match.value))


def _reason(reason: Reason, values: Sequence[int | str]) -> Reason:
    """Return the reason for all values; it gives their number if there are too many to name."""
    if not reason.plural:
        return reason._replace(value=", ".join(map(str, values)))
    head, _, rest = reason.plural.partition("{")
    noun, _, tail = rest.partition("}")
    named = reason._replace(template=f"{head}{noun} {{value}}{tail}", value=", ".join(map(str, values)))
    if len(str(named).encode()) <= COMMENT_BYTES:
        return named
    return reason._replace(template=f"{head}{{value}} {noun}{tail}", value=f"{len(values):,}")
