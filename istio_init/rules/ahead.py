"""Finds the third-party rules that keep connections from ours, wherever new connections pass them before ours. Pure.

Such a rule may stand before our jump in a built-in chain, in a chain that is jumped to from there, or in a base chain that
runs earlier on the same hook. What a rule cannot catch of the connections that a plan captures is not told: its conditions,
and those of the jumps that lead to it, are compared with the plan's. A condition that is not understood may hold.

Where a base chain ends for a packet, the next one still sees it, unless it was dropped (netfilter_hooks in the kernel's
documentation of nf_tables); but of the chains of type nat, the first that maps a connection is the last (nf_nat_inet_fn in
net/netfilter/nf_nat_core.c), and untracked packets pass none.
"""

from __future__ import annotations

from istio_init.core.light import TYPE_CHECKING, NamedTuple
from istio_init.rules.changes import has_same_jumps, stand_first
from istio_init.rules.matches import TARGETS
from istio_init.rules.matches.overlap import exclude, imply
from istio_init.rules.model import BUILTIN_CHAINS, Foreign, Match, MatchKind, Rule, Table, TargetKind
from istio_init.rules.render.foreign import read_foreign

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from istio_init.rules.model import KernelRule, TableState
    from istio_init.rules.render.foreign import ForeignRule

MOST_DEPTH = 16  # jumps: NFT_JUMP_STACK_SIZE; x_tables allows more, but no tool nests so deep
MOST_RULES = 20_000  # third-party rules that are looked at for one chain of ours, however often they are jumped to
MOST_FINDINGS = 20
MOST_COMPARED = 32  # earlier rules of a chain that a rule is compared with

DROPS, MAPS = frozenset({"DROP", "REJECT"}), frozenset({"DNAT", "NETMAP", "REDIRECT"})
# Targets after which our rules in the same base chain do not see a packet.
ENDS = DROPS | MAPS | {"ACCEPT", "RETURN", "QUEUE", "NFQUEUE", "TPROXY"}
UNTRACKED = "NOTRACK"
OF_TRACKING = -200  # NF_IP_PRI_CONNTRACK in linux/netfilter_ipv4.h
NEW = Match(MatchKind.CTSTATE, "NEW")
PROTOCOLS = tuple(Match(MatchKind.PROTOCOL, name) for name in ("tcp", "udp"))
LOOPBACK = (Match(MatchKind.DESTINATION, "127.0.0.0/8"), Match(MatchKind.DESTINATION, "::1/128"))
OUT_LO = Match(MatchKind.OUT_INTERFACE, "lo")
CAPTURES = (TargetKind.REDIRECT, TargetKind.TPROXY)
UNSEEN = "UNSEEN"  # stands for rules that were not looked at
ON, BACK, OUT = "on", "back", "out"  # to the next rule; to the rule after the jump; out of the base chain
WORDINGS = {
    MatchKind.SOURCE: "from",
    MatchKind.SOURCE_PORT: "from port",
    MatchKind.IN_INTERFACE: "through",
    MatchKind.OUT_INTERFACE: "through",
    MatchKind.DESTINATION: "to",
    MatchKind.DESTINATION_PORT: "to port",
    MatchKind.DESTINATION_PORTS: "to ports",
    MatchKind.UID_OWNER: "of user",
    MatchKind.GID_OWNER: "of group",
}
Context = tuple[Match, ...]
Path = tuple[tuple[str, Foreign], ...]  # chains, and the rules in them that jump on


class Base(NamedTuple):
    """A base chain, or the part of one, that new connections pass before our rules.

    Attributes:
        table: its table, such as `nat`, or `inet NAME` for one that iptables does not have.
        chain: its name.
        rules: the rules that are passed.
        others: all chains that they can jump to.
        priority: the chain's priority on its hook.
        program: the program of iptables that lists it; "" for a table that iptables does not have.
        ending: the targets that keep a packet from our rules.
        drops: whether it drops what comes to its end.
    """

    table: str
    chain: str
    rules: Sequence[Foreign]
    others: Mapping[str, Sequence[Foreign]]
    priority: int
    program: str
    ending: frozenset[str] = ENDS
    drops: bool = False


class Finding(NamedTuple):
    """A third-party rule that keeps connections from ours.

    Attributes:
        base: the base chain that leads to it.
        chain: the chain in which it stands.
        path: the rules that jump to that chain, from the base chain on.
        rule: the rule; without text, it is the policy of the base chain.
        target: what it does, such as `DNAT`.
        matches: its conditions and those of the path, as far as they are understood.
        is_whole: whether there are no others.
    """

    base: Base
    chain: str
    path: Path
    rule: Foreign
    target: str
    matches: tuple[Match, ...]
    is_whole: bool

    @property
    def identity(self) -> tuple[str, str, str, str]:
        """The program, table, chain and rule; a native rule that is read as several is but one."""
        return self.base.program, self.base.table, self.chain, str(self.rule.handle or self.rule.text)


def rules_ahead(ours: TableState, current: TableState, chain: str) -> Sequence[Foreign]:
    """Return the third-party rules of a built-in chain that precede ours once a plan is in place.

    Ours are appended, so each third-party rule there may decide first, except where ours are in place, or stand first.

    Args:
        ours: the plan's rules of a table.
        current: what the table holds.
        chain: the built-in chain.
    """
    if stand_first(rule for _, rule in ours.inserted):
        return ()
    stay = all(has_same_jumps(ours, current, one) for one in BUILTIN_CHAINS)  # else all of ours are appended again
    rules = current.theirs.rules.get(chain, ())
    return rules[: current.theirs.ahead.get(chain, 0)] if stay else rules


def ends_of(kind: str, priority: int, table: Table) -> frozenset[str]:
    """Return the targets of an earlier base chain that keep packets from our rules.

    Args:
        kind: the chain's type, `nat`, `filter` or `route`.
        priority: its priority.
        table: the table of ours.
    """
    if kind == "nat":
        return DROPS | MAPS if table is Table.NAT else DROPS
    untracked = {UNTRACKED} if table is Table.NAT and priority < OF_TRACKING else set()
    return DROPS | {"TPROXY"} | untracked


def as_jumps(ours: TableState) -> TableState:
    """Return a plan's rules of a table, with those that stand first in the place of those that would be appended."""
    return ours._replace(jumps=ours.inserted, inserted=()) if stand_first(rule for _, rule in ours.inserted) else ours


def find_ahead(bases: Iterable[Base], ours: TableState, chain: str) -> list[Finding]:
    """Find the rules that keep connections from ours, in the order in which packets pass them.

    Args:
        bases: what new connections pass before our rules in one built-in chain.
        ours: the plan's rules of that table.
        chain: the built-in chain.
    """
    bases = [base for base in bases if base.drops or base.rules]
    plan = _Captured(as_jumps(ours), chain)
    found: dict[tuple[str, str, str, str], Finding] = {}
    for protocol in PROTOCOLS if bases else ():
        context = (protocol, NEW)
        if not plan.captures(context):
            continue
        for base in bases:
            walk = _Walk(base, plan)
            for finding in walk.findings(context):
                key = finding.identity
                found[key] = _both(found[key], finding) if key in found else finding
    return list(found.values())


def _both(first: Finding, second: Finding) -> Finding:
    """Join the findings of one rule, for two protocols, by two paths, or of two readings of it."""
    common = tuple(match for match in first.matches if match in second.matches)
    lost = {match.kind for match in (*first.matches, *second.matches) if match not in common}
    is_whole = first.is_whole and second.is_whole and lost <= {MatchKind.PROTOCOL}
    return first._replace(matches=common, is_whole=is_whole)


class _Captured:
    """Tells whether a plan may capture connections of some kind in one built-in chain."""

    def __init__(self, ours: TableState, chain: str) -> None:
        self._chains = ours.chains
        self._inserted = [rule for name, rule in ours.inserted if name == chain and isinstance(rule, Rule)]
        self._jumps = [rule for name, rule in ours.jumps if name == chain]
        self._has_dns = "ISTIO_OUTPUT_DNS" in ours.chains

    def captures(self, context: Context) -> bool:
        """Return whether there may be a connection in `context` that these rules would capture.

        Of what goes to localhost, plans capture no more than DNS on purpose, and third parties have good reasons for rules
        about it (Docker's resolver). What a pod sends to its own addresses counts for a rule about loopback alone: which
        addresses these are is not known here.
        """
        to_localhost = any(imply(context, (one,)) for one in LOOPBACK)
        if to_localhost and not self._has_dns:
            return False
        context = (*context, OUT_LO._replace(negated=not to_localhost and not imply(context, (OUT_LO,))))
        if any(imply(context, rule.matches) for rule in self._inserted):
            return False  # those at the head precede third-party rules, too
        return self._passes(self._jumps, context) == "captured"

    def _passes(self, rules: Iterable[KernelRule], context: Context) -> str:
        """Return `captured` if a rule may capture something, `ended` if all certainly leave the base chain, else ``."""
        for rule in rules:
            if not isinstance(rule, Rule) or exclude(context, rule.matches):
                continue
            effect, certain = TARGETS[rule.target.kind].effect, imply(context, rule.matches)
            outcome = ""
            if rule.target.kind in CAPTURES:
                return "captured"
            if effect == "jumps":
                outcome = self._passes(self._chains.get(rule.target.chain, ()), (*context, *rule.matches))
                if outcome == "captured":
                    return outcome
            elif effect in ("ends", "diverts"):
                outcome = "ended"
            if certain and outcome:
                return outcome
            if certain and effect == "returns":
                return ""
        return ""


class _Walk:
    """Walks through one base chain of third parties."""

    def __init__(self, base: Base, plan: _Captured) -> None:
        self._base = base
        self._plan = plan
        self._left = MOST_RULES
        self._found: list[Finding] = []

    def findings(self, context: Context) -> list[Finding]:
        """Return what keeps connections in `context` from the plan."""
        comes_back = self._chain(self._base.chain, self._base.rules, (), context)
        if comes_back and self._base.drops:
            self._note(self._base.chain, (), Foreign(""), "DROP", context)
        if self._left < 0:
            self._note(self._base.chain, (), Foreign(""), UNSEEN, context)
        return self._found

    def _chain(self, name: str, rules: Sequence[Foreign], path: Path, context: Context) -> bool:
        """Walk through a chain; return whether packets may come back from it."""
        comes_back = False
        gone: list[Context] = []  # what certainly does not come to the next rule
        for rule in rules:
            self._left -= 1
            if self._left < 0 or len(self._found) >= MOST_FINDINGS:
                return False
            read = read_foreign(rule.text)
            inside = (*context, *read.matches)
            if exclude(context, read.matches) or any(imply(inside, matches) for matches in gone):
                continue
            then = self._target(read, (*path, (name, rule)), inside)
            comes_back = comes_back or then == BACK
            if then != ON and read.is_whole and imply(context, read.matches):
                return comes_back
            if then != ON and read.is_whole and len(gone) < MOST_COMPARED:
                gone.append(read.matches)
        return True

    def _target(self, read: ForeignRule, path: Path, context: Context) -> str:
        """Follow the target of the last rule of a path; return where packets go then: ON, BACK or OUT."""
        leaves = read.is_goto and len(path) == 1  # the base chain, and packets do not come back to it
        if read.target in self._base.others and not (leaves and "RETURN" in self._base.ending):
            others = self._base.others[read.target]
            if len(path) <= MOST_DEPTH and not self._chain(read.target, others, path, context):
                return OUT
            return BACK if read.is_goto else ON
        target = "RETURN" if leaves else UNTRACKED if "--notrack" in read.options else read.target
        if target == "RETURN" and (len(path) > 1 or target not in self._base.ending):
            return BACK
        if target in self._base.ending:
            chain, rule = path[-1]
            self._note(chain, path[:-1], rule, target, context)
        return OUT if target in ENDS else ON

    def _note(self, chain: str, path: Path, rule: Foreign, target: str, context: Context) -> None:
        if self._plan.captures(context):
            matches = tuple(dict.fromkeys(match for match in context if match != NEW))
            is_whole = all(read_foreign(one.text).is_whole for _, one in (*path, (chain, rule)))
            self._found.append(Finding(self._base, chain, path, rule, target, matches, is_whole))


def describe_connections(finding: Finding) -> str:
    """Say which connections a rule matches, such as `TCP connections to port 80 of user 0`."""
    protocol = next((str(match.value).upper() for match in finding.matches if match.kind is MatchKind.PROTOCOL), "")
    words = [f"{protocol} connections".strip()]
    for kind, wording in WORDINGS.items():
        for match in finding.matches:
            if match.kind is kind:
                value = str(match.value).replace(":", "-") if "port" in wording else match.value
                words.append(f"{'not ' * match.negated}{wording} {value}")
    return " ".join(words) + ("" if finding.is_whole else ", as far as its other conditions hold")
