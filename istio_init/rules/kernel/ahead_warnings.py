"""Warnings about third-party rules that keep connections from ours, wherever in the kernel they stand.

Our rules share a hook with iptables' tables, legacy ones and those in nf_tables, and with the base chains of other tables of
nf_tables. What comes first there is a matter of priorities. Of equal ones, the chain that was made last comes first
(nf_hook_entries_grow in net/netfilter/core.c, measured on Linux 6.18).
"""

from __future__ import annotations

from istio_init.core.light import TYPE_CHECKING, NamedTuple
from istio_init.core.runner import Command, run_all
from istio_init.rules.ahead import (
    DROPS,
    UNSEEN,
    UNTRACKED,
    Base,
    as_jumps,
    describe_connections,
    ends_of,
    find_ahead,
    rules_ahead,
)
from istio_init.rules.changes import NOTHING, stand_first
from istio_init.rules.kernel.nf_tables_hooks import base_chains, elements_of, rules_of, table_handles
from istio_init.rules.kernel.nf_tables_rules import words_of
from istio_init.rules.kernel.parts import seen
from istio_init.rules.kernel.restore import RestoreBackend
from istio_init.rules.kernel.rule_sets import RuleSet
from istio_init.rules.model import NFT_TABLE, Family, Foreign, Table, Variant
from istio_init.rules.render.iptables import command_name
from istio_init.rules.render.nft import FAMILIES, PRIORITIES, hook

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.core.runner import Observer
    from istio_init.rules.ahead import Finding
    from istio_init.rules.kernel.nf_tables_hooks import NativeChain
    from istio_init.rules.kernel.parts import Part
    from istio_init.rules.model import Snapshot

TABLES = frozenset(table.value for table in Table)
MOST_WARNINGS = 5  # for one chain of ours
AHEAD_OF_IT = ", or put ours ahead of it (--jump first)"
MOST_CHARACTERS = 300  # of a rule


class Ours(NamedTuple):
    """Where our rules of one family are.

    Attributes:
        part: the part that holds them.
        family: the family.
        wanted: the plan's rules.
        legacy: what is in legacy tables, if ours are not.
        native: the tables of nf_tables that others made, besides those of iptables if ours are there.
    """

    part: Part
    family: Family
    wanted: Snapshot
    legacy: Snapshot
    native: frozenset[str]

    @property
    def rule_set(self) -> RuleSet:
        """The rule set that holds them."""
        return self.part.backend.rule_set(self.family)

    @property
    def current(self) -> Snapshot:
        """What that rule set held before the plan was written."""
        return self.part.before[self.family]

    def is_new(self, table: Table, chain: str) -> bool:
        """Return whether the base chain with ours was made just now, so that it is the first of its priority."""
        if self.rule_set is RuleSet.NATIVE:
            return bool(self.part.changes.get(self.family))
        return chain not in self.current.get(table, NOTHING).theirs.rules

    def stand_first(self, table: Table) -> bool:
        """Return whether ours are to stand before third-party rules."""
        return stand_first(rule for _, rule in self.wanted.get(table, NOTHING).inserted)

    def priority(self, table: Table, chain: str) -> int:
        """Return the priority of the base chain that leads to ours."""
        is_first = self.rule_set is RuleSet.NATIVE and self.stand_first(table)
        return hook(table, chain, is_first=is_first)[2]

    def program(self, variant: Variant) -> str:
        """Return the name of the program of iptables that lists a rule set."""
        own = self.part.backend.variants((self.family,)).get(self.family)
        is_own = self.rule_set is (RuleSet.LEGACY if variant is Variant.LEGACY else RuleSet.IPTABLES_NFT)
        return command_name(self.family, own if own and is_own else variant)


def warnings_of(ours: Ours, observe: Observer) -> Iterator[str]:
    """Yield a warning for each third-party rule that keeps connections from ours.

    Args:
        ours: where ours are.
        observe: receives each command that is run.

    Raises:
        NotPermitted, Unsupported: the kernel's rules could not be read.
    """
    reader = _Reader(ours, observe)
    told: set[tuple[str, str, str, str]] = set()
    for table in (Table.MANGLE, Table.NAT):
        for chain in dict.fromkeys(name for name, _ in as_jumps(ours.wanted.get(table, NOTHING)).jumps):
            bases = sorted(reader.bases(table, chain), key=lambda base: base.priority)
            found = [one for one in find_ahead(bases, ours.wanted[table], chain) if one.identity not in told]
            told.update(one.identity for one in found)
            for number, one in enumerate(found[:MOST_WARNINGS], 1):
                more = len(found) - MOST_WARNINGS if number == MOST_WARNINGS else 0
                yield reader.tell(one, table, chain) + f" (and {more} more)" * (more > 0)


class _Reader:
    """Reads what is ahead of ours, each table once and only if it has to be known."""

    def __init__(self, ours: Ours, observe: Observer) -> None:
        self._ours = ours
        self._observe = observe
        self._base_chains = base_chains(ours.family) if ours.native else []
        self._iptables: Snapshot | None = None
        self._chains: dict[tuple[str, str], dict[str, list[Foreign]]] = {}
        self._handles: dict[tuple[str, str], int] | None = None
        self._listed: dict[tuple[str, str], dict[int, str]] = {}

    def bases(self, table: Table, chain: str) -> Iterator[Base]:
        """Yield the base chains, or what of them, that packets pass before ours."""
        ours = self._ours
        own = Variant.LEGACY if ours.rule_set is RuleSet.LEGACY else Variant.NFT
        if ours.rule_set is not RuleSet.NATIVE:
            state = ours.current.get(table, NOTHING)
            rules = rules_ahead(ours.wanted[table], state, chain)
            yield Base(table, chain, rules, state.theirs.rules, PRIORITIES[table], ours.program(own))
            yield from self._of_iptables(ours.current, own, table, chain, is_own=True)
        yield from self._of_iptables(ours.legacy, Variant.LEGACY, table, chain)
        if ours.rule_set is not RuleSet.IPTABLES_NFT and any(map(_is_of_iptables, self._base_chains)):
            yield from self._of_iptables(self._read_iptables(), Variant.NFT, table, chain)
        for one in self._base_chains:
            is_native = one.table in ours.native and not _is_of_iptables(one)
            if one.hook == chain and is_native and self._is_before(one, table):
                yield self._native(one, table)

    def _of_iptables(
        self, tables: Snapshot, variant: Variant, ours: Table, chain: str, *, is_own: bool = False
    ) -> Iterator[Base]:
        """Yield the chains of the tables of iptables in one rule set, apart from the one that holds ours."""
        for table, state in tables.items():
            kind = "nat" if table is Table.NAT else "filter"
            priority = PRIORITIES[table]
            of_ours = self._ours.priority(ours, chain)
            if chain not in state.theirs.rules or priority > of_ours or (is_own and table is ours):
                continue
            if priority < of_ours or not self._ours.is_new(ours, chain):
                program = self._ours.program(variant)
                ending = ends_of(kind, priority, ours)
                rules = state.theirs.rules[chain]
                yield Base(
                    table, chain, rules, state.theirs.rules, priority, program, ending, chain in state.theirs.dropping
                )

    def _read_iptables(self) -> Snapshot:
        """Read the tables that iptables has in nf_tables, where ours are elsewhere."""
        if self._iptables is None:
            waits = self._ours.part.backend.waits
            reader = RestoreBackend(None, waits, self._observe, (RuleSet.IPTABLES_NFT,))
            self._iptables = seen(reader.read((self._ours.family,)))[0][self._ours.family]
        return self._iptables

    def _is_before(self, one: NativeChain, ours: Table) -> bool:
        """Return whether packets pass a base chain before ours, or may do so."""
        if one.priority != (of_ours := self._ours.priority(ours, one.hook)):
            return one.priority < of_ours
        if self._ours.is_new(ours, one.hook):
            return False
        if self._ours.rule_set is RuleSet.LEGACY:
            return True  # which was made first cannot be seen
        if self._handles is None:
            self._handles = table_handles(self._ours.family)
        own = NFT_TABLE if self._ours.rule_set is RuleSet.NATIVE else ours.value
        return self._handles.get((one.family, one.table), 0) > self._handles.get((FAMILIES[self._ours.family], own), 0)

    def _native(self, one: NativeChain, ours: Table) -> Base:
        place = one.family, one.table
        if place not in self._chains:
            chains: dict[str, list[Foreign]] = {}
            for rule in rules_of(*place):
                words = words_of(rule, self._ours.family, lambda name: elements_of(*place, name))
                chains.setdefault(rule.chain, []).extend(words)
            self._chains[place] = chains
        chains = self._chains[place]
        ending = ends_of(one.kind, one.priority, ours)
        return Base(" ".join(place), one.name, chains.get(one.name, ()), chains, one.priority, "", ending, one.drops)

    def tell(self, finding: Finding, table: Table, chain: str) -> str:
        """Say what keeps connections from ours in a built-in chain, which ones, and what can be done about it."""
        base, place = finding.base, f"{table} {chain} ({self._ours.family})"
        start = f"a third-party rule takes precedence over ours in {place}"
        if finding.target == UNSEEN:
            return f"{start}, perhaps: {base.table} {base.chain} leads to more rules than were looked at"
        where = "" if f"{base.table} {finding.chain} (" in f"{place} (" else f"in {self._place(finding)}, "
        what = f"`{self._text(base, finding.chain, finding.rule)}`" if finding.rule.text else "the policy of this chain"
        return (
            f"{start}: {where}{what}; it matches {describe_connections(finding)}, which {_fate(finding)}; "
            f"{self._remedy(finding)}{AHEAD_OF_IT if self._may_precede(base, table) else ''}"
        )

    def _may_precede(self, base: Base, ours: Table) -> bool:
        """Return whether ours would come before a base chain's rules if they were to stand first."""
        if self._ours.stand_first(ours):
            return False
        if self._ours.rule_set is RuleSet.NATIVE:
            return base.priority == PRIORITIES[ours]
        own = Variant.LEGACY if self._ours.rule_set is RuleSet.LEGACY else Variant.NFT
        return base.table == ours and base.program == self._ours.program(own)

    def _place(self, finding: Finding) -> str:
        base = finding.base
        start = f"chain {finding.chain} of table {base.table}"
        if not finding.path:
            return f"{start} (priority {base.priority})"
        jumps = (f"{chain} `{self._text(base, chain, rule)}`" for chain, rule in finding.path)
        return f"{start} (reached from {', '.join(jumps)})"

    def _text(self, base: Base, chain: str, rule: Foreign) -> str:
        """Return a rule as iptables-save prints it, or, where iptables does not know it, as nft does."""
        if not rule.handle:
            return rule.text
        native = self._native_table(base)
        text = self._list(native, chain).get(rule.handle)
        if not text:
            readings = base.rules if chain == base.chain else base.others.get(chain, ())
            words = " or ".join(one.text for one in readings if one.handle == rule.handle)
            text = f"[rule of nft with handle {rule.handle}] {words}"
        return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} ..."

    def _native_table(self, base: Base) -> str:
        return f"{FAMILIES[self._ours.family]} {base.table}" if base.program else base.table

    def _list(self, table: str, chain: str) -> dict[int, str]:
        """Let nft list a chain; nothing if it is not installed, or fails."""
        if (table, chain) not in self._listed:
            command = Command(("nft", "-s", "-a", "list", "chain", *table.split(), chain))
            (result,) = run_all([command], self._ours.part.backend.waits.tool, self._observe)
            lines = (line.strip().rpartition(" # handle ") for line in result.stdout.splitlines())
            self._listed[table, chain] = {int(number): text for text, sign, number in lines if sign and number.isdecimal()}
        return self._listed[table, chain]

    def _remedy(self, finding: Finding) -> str:
        base, rule = finding.base, finding.rule
        native = self._native_table(base)
        if not rule.text and base.program:
            return f"change it if this is not intended ({base.program} -t {base.table} -P {base.chain} ACCEPT)"
        if not rule.text:
            return f"change it if this is not intended (nft list chain {native} {base.chain} shows it)"
        if rule.handle:
            return f"delete it if this is not intended (nft delete rule {native} {finding.chain} handle {rule.handle})"
        return f"delete it if this is not intended ({base.program} -t {base.table} -S {finding.chain} shows it)"


def _is_of_iptables(one: NativeChain) -> bool:
    return one.family != "inet" and one.table in TABLES


def _fate(finding: Finding) -> str:
    if finding.target == UNTRACKED:
        return "never reach the proxy, because table nat does not see untracked connections"
    return "never reach the proxy" if finding.target in DROPS else "bypass the proxy"
