"""What must differ in rules while two rule sets of the kernel both hold some: the old ones until they are gone, and the new.

Each packet passes both. With TPROXY, the mark that one set gives to a client's packets is seen by the other at the same
hook. It takes them for the proxy's own and saves the mark in the connection, whose answers are then routed back into the pod
for ever. What the proxy itself sends with that mark comes from lo, and what is diverted does not, so meanwhile marks are
saved of packets from lo only. Pure.
"""

from istio_init.rules.model import KernelRule, Match, MatchKind, Rule, Snapshot, Table, TargetKind

FROM_LOOPBACK = Match(MatchKind.IN_INTERFACE, "lo")


def guarded(tables: Snapshot) -> Snapshot:
    """Return tables that save marks of packets from lo only."""
    if Table.MANGLE not in tables:
        return tables
    mangle = tables[Table.MANGLE]
    jumps, inserted = (tuple((chain, _guarded(rule)) for chain, rule in rules) for rules in (mangle.jumps, mangle.inserted))
    return {**tables, Table.MANGLE: mangle._replace(jumps=jumps, inserted=inserted)}


def unguarded(rule: Rule) -> Rule:
    """Return the rule of which `guarded` made this one."""
    return rule._replace(matches=tuple(match for match in rule.matches if match != FROM_LOOPBACK))


def _guarded(rule: KernelRule) -> KernelRule:
    if not isinstance(rule, Rule) or rule.target.kind is not TargetKind.SAVE_MARK or FROM_LOOPBACK in rule.matches:
        return rule
    return rule._replace(matches=(FROM_LOOPBACK, *rule.matches))
