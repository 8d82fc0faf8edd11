"""What must differ in rules while old and new ones both hold: table by table in one rule set, or in two of the kernel's.

Each packet passes both. Two things go wrong then, and narrower rules prevent both until the old ones are gone:

- The mark with which TPROXY of one rule set diverts a client's packets is seen by the other at the same hook. It takes them
  for the proxy's own and saves the mark in the connection, whose answers are then routed back into the pod for ever. What
  the proxy itself sends with that mark comes from lo, and what is diverted does not: so only packets from lo count.
- Where REDIRECT and TPROXY follow each other, both take a new connection: mangle hands it to a socket, and nat gives it
  another destination. So what bears the mark is not redirected.

Pure.
"""

from istio_init.core.light import TYPE_CHECKING
from istio_init.rules.changes import NOTHING
from istio_init.rules.model import KernelRule, Match, MatchKind, Rule, Snapshot, Table, TargetKind

if TYPE_CHECKING:
    from collections.abc import Callable

FROM_LOOPBACK = Match(MatchKind.IN_INTERFACE, "lo")
ORDER = tuple(MatchKind)


def beside(tables: Snapshot, other: Snapshot) -> Snapshot:
    """Return rules as they must be while another rule set holds `other`."""
    if diverting_marks(other) and Table.MANGLE in tables:
        tables = _with_jumps(tables, Table.MANGLE, lambda _, rule: _of_loopback(rule))
    return around(tables, other)


def around(tables: Snapshot, other: Snapshot) -> Snapshot:
    """Return rules as they must be while `other` comes before or after them in the same rule set, table by table."""
    marks = diverting_marks(other) - diverting_marks(tables)
    if not marks or Table.NAT not in tables:
        return tables
    return _with_jumps(tables, Table.NAT, lambda chain, rule: _sparing(rule, marks) if chain == "PREROUTING" else rule)


def narrowing(rule: Rule) -> tuple[Match, ...]:
    """Return the matches that `beside` and `around` may have added to a rule in a built-in chain."""
    return tuple(one for one in rule.matches if one == FROM_LOOPBACK or (one.kind is MatchKind.MARK and one.negated))


def diverting_marks(tables: Snapshot) -> frozenset[int]:
    """Return the marks with which rules of ours, or of Istio's own tools, divert packets."""
    rules = tables.get(Table.MANGLE, NOTHING).chains.get("ISTIO_DIVERT", ())
    return frozenset(rule.target.mark for rule in rules if isinstance(rule, Rule) and rule.target.mark is not None)


def saved_marks(tables: Snapshot) -> frozenset[int]:
    """Return the marks that rules save in connections: those that the proxy opens to its app from its clients' addresses."""
    mangle = tables.get(Table.MANGLE, NOTHING)
    return frozenset(
        int(match.value)
        for _, rule in (*mangle.jumps, *mangle.inserted)
        if isinstance(rule, Rule) and rule.target.kind is TargetKind.SAVE_MARK
        for match in rule.matches
        if match.kind is MatchKind.MARK
    )


def seeks_sockets(tables: Snapshot) -> bool:
    """Return whether rules tell established connections by their sockets (TPROXY of Istio 1.0)."""
    rules = [rule for chain in tables.get(Table.MANGLE, NOTHING).chains.values() for rule in chain if isinstance(rule, Rule)]
    return any(match.kind is MatchKind.SOCKET for rule in rules for match in rule.matches)


def _with_jumps(tables: Snapshot, table: Table, change: "Callable[[str, KernelRule], KernelRule]") -> Snapshot:
    state = tables[table]
    jumps, inserted = (
        tuple((chain, change(chain, rule)) for chain, rule in rules) for rules in (state.jumps, state.inserted)
    )
    return {**tables, table: state._replace(jumps=jumps, inserted=inserted)}


def _of_loopback(rule: KernelRule) -> KernelRule:
    is_saving = isinstance(rule, Rule) and rule.target.kind is TargetKind.SAVE_MARK
    return _narrowed(rule, FROM_LOOPBACK) if is_saving else rule


def _sparing(rule: KernelRule, marks: frozenset[int]) -> KernelRule:
    for mark in sorted(marks):
        rule = _narrowed(rule, Match(MatchKind.MARK, mark, negated=True))
    return rule


def _narrowed(rule: KernelRule, match: Match) -> KernelRule:
    if not isinstance(rule, Rule) or match in rule.matches:
        return rule
    return rule._replace(matches=tuple(sorted((*rule.matches, match), key=lambda one: ORDER.index(one.kind))))
