"""What must differ in rules while two rule sets of the kernel both hold some: the old ones until they are gone, and the new.

Each packet passes both. With TPROXY, the mark that one set gives to a client's packets is seen by the other at the same
hook. It takes them for the proxy's own and saves the mark in the connection, whose answers are then routed back into the pod
for ever. What the proxy itself sends with that mark comes from lo, and what is diverted does not, so meanwhile marks are
saved of packets from lo only. Pure.
"""

from istio_init.rules.changes import NOTHING
from istio_init.rules.model import KernelRule, Match, MatchKind, Rule, Snapshot, Table, TargetKind

FROM_LOOPBACK = Match(MatchKind.IN_INTERFACE, "lo")


def guarded(tables: Snapshot) -> Snapshot:
    """Return tables that save marks of packets from lo only."""
    if Table.MANGLE not in tables:
        return tables
    mangle = tables[Table.MANGLE]
    jumps, inserted = (tuple((chain, _guarded(rule)) for chain, rule in rules) for rules in (mangle.jumps, mangle.inserted))
    return {**tables, Table.MANGLE: mangle._replace(jumps=jumps, inserted=inserted)}


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


def unguarded(rule: Rule) -> Rule:
    """Return the rule of which `guarded` made this one."""
    return rule._replace(matches=tuple(match for match in rule.matches if match != FROM_LOOPBACK))


def _guarded(rule: KernelRule) -> KernelRule:
    if not isinstance(rule, Rule) or rule.target.kind is not TargetKind.SAVE_MARK or FROM_LOOPBACK in rule.matches:
        return rule
    return rule._replace(matches=(FROM_LOOPBACK, *rule.matches))
