"""Our rules in the tables that iptables has in nf_tables, read and changed without iptables' programs.

It is for what those programs cannot do: to read a table in which third-party native rules stand, and to remove rules where
the programs are missing. Rules are removed by their handles, so that nothing else can be hit. It cannot translate rules of a
plan; what it adds are rules that it read before (a rollback), or those of `istio_init.rules.handover`.
"""

from __future__ import annotations

from istio_init.core.errors import Unsupported
from istio_init.core.light import TYPE_CHECKING
from istio_init.rules.handover import FROM_LOOPBACK, narrowing
from istio_init.rules.kernel import nf_tables
from istio_init.rules.kernel.backend import Backend, Changes, Readings, Whole
from istio_init.rules.kernel.locks import USUAL_WAITS, Waits
from istio_init.rules.kernel.nf_tables_hooks import OF_FAMILY, elements_of
from istio_init.rules.kernel.nf_tables_rules import words_of
from istio_init.rules.kernel.nf_tables_text import HOST_NUMBER, describe
from istio_init.rules.kernel.rule_sets import RuleSet
from istio_init.rules.model import (
    BUILTIN_CHAINS,
    Family,
    Foreign,
    KernelRule,
    Match,
    OpaqueRule,
    Rule,
    Snapshot,
    Table,
    Variant,
)
from istio_init.rules.render.iptables import TableReader, is_ours, parse_rule

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from istio_init.core.errors import IstioInitError
    from istio_init.rules.changes import TableChange
    from istio_init.rules.kernel.nf_tables import Message, NativeRule

TABLES = {table.value: table for table in Table}
Place = tuple[Family, Table, str, KernelRule]
Texts = dict[str, list[str]]  # rules of chains as iptables-save prints them, without `-A CHAIN`


class NativeBackend(Backend):
    """Reads, removes and puts back rules through netlink.

    Args:
        waits: how long to wait for locks and for tools.
    """

    name = "netlink"
    rule_sets = frozenset({RuleSet.IPTABLES_NFT})
    all_or_nothing = True

    def __init__(self, waits: Waits = USUAL_WAITS) -> None:
        super().__init__(waits)
        # What a change calls a rule, and the rules of the kernel that this was last read from.
        self._places: dict[Place, list[NativeRule]] = {}
        self._forms: dict[Place, NativeRule] = {}  # the same for all that was ever read, to put it back

    def variants(self, families: tuple[Family, ...]) -> dict[Family, Variant]:
        """Return nf_tables, the only kernel interface that this reaches."""
        return dict.fromkeys(families, Variant.NFT)

    def read(self, families: tuple[Family, ...]) -> Readings:
        """Read all tables of iptables that exist in nf_tables."""
        return {family: Whole(self.read_tables(family, tuple(Table))) for family in families}

    def read_tables(self, family: Family, wanted: Collection[Table], texts: Mapping[Table, Texts] | None = None) -> Snapshot:
        """Read some tables.

        Args:
            family: whose tables.
            wanted: which of them.
            texts: for each table what iptables itself prints of chains, of those in which it understands every rule.

        Raises:
            NotPermitted, Unsupported: the kernel refused, or its answer could not be read.
        """
        self._places = {place: rules for place, rules in self._places.items() if place[0] is not family}
        names = sorted(nf_tables.chains(family))
        listed = nf_tables.rules(family)
        found: Snapshot = {}
        for table in wanted:
            chains = [chain for name, chain in names if name == table]
            if not chains:
                continue
            reader = TableReader(table)
            for chain in chains:
                # The policy of a built-in chain is not looked at here, nor by anything that removes rules.
                reader.add_chain(chain, "ACCEPT" if chain in BUILTIN_CHAINS else "-")
                rules = [rule for rule in listed if (rule.table, rule.chain) == (table, chain)]
                self._read_chain(family, table, rules, (texts or {}).get(table, {}).get(chain), reader)
            found[table] = reader.state()
        return found

    def _read_chain(
        self, family: Family, table: Table, rules: list[NativeRule], texts: list[str] | None, reader: TableReader
    ) -> None:
        words = [describe(rule.expressions).text for rule in rules]
        is_printed = texts is not None and len(texts) == len(rules)  # else somebody changed it between the two looks
        if texts is not None and is_printed:
            words = texts
        for rule, text in zip(rules, words, strict=True):
            is_opaque = isinstance(parse_rule(text), OpaqueRule)
            is_known = is_printed or is_ours(table, rule.chain, text)
            reader.add_rule(rule.chain, text, rule if is_opaque else None, None if is_known else _readings(family, rule))
            place = family, table, rule.chain, OpaqueRule(text, rule) if is_opaque else parse_rule(text)
            self._places.setdefault(place, []).append(rule)
            self._forms[place] = rule

    def probe(self, tables: Mapping[Family, Table]) -> dict[Family, str]:
        """Refuse: this backend cannot write a plan."""
        return dict.fromkeys(tables, "rules of a plan cannot be written through netlink")

    def commit(self, changes: Changes) -> dict[Family, IstioInitError]:
        """Make the changes of all families in one transaction."""
        messages = [m for family, wanted in changes.items() for change in wanted for m in self._messages(family, change)]
        try:
            nf_tables.change(messages)
        except Unsupported as error:
            return dict.fromkeys(changes, error)
        return {}

    def _messages(self, family: Family, change: TableChange) -> Iterator[Message]:
        table = change.table
        for chain in change.chains:
            yield nf_tables.create_chain(family, table, chain)
        for chain in (*change.chains, *change.dropped):
            yield nf_tables.delete_rules(family, table, chain)
        for chain, rule in change.removed_jumps:
            yield nf_tables.delete_rules(family, table, chain, self._places[family, table, chain, rule].pop(0).handle)
        for chain, rules in change.chains.items():
            for rule in rules:
                yield self._added((family, table, chain, rule))
        for chain, rule in reversed(change.inserted_jumps):
            yield self._added((family, table, chain, rule), at_head=True)
        for chain, rule in change.added_jumps:
            yield self._added((family, table, chain, rule))
        for chain in change.dropped:
            yield nf_tables.delete_chain(family, table, chain)

    def _added(self, place: Place, *, at_head: bool = False) -> Message:
        rule = self._form(place)
        return nf_tables.add_rule(place[0], rule, describe(rule.expressions).protocol, at_head=at_head)

    def _form(self, place: Place) -> NativeRule:
        """Return how the kernel has a rule that was read before, or that is made narrower for a handover."""
        if place in self._forms or not isinstance(place[3], Rule):
            return self._forms[place]
        added = narrowing(place[3])
        known = place[3]._replace(matches=tuple(match for match in place[3].matches if match not in added))
        form = self._forms[(*place[:3], known)]
        for match in added:
            form = form.narrowed(*_condition(match))
        return form


def _condition(match: Match) -> tuple[int, int, bytes]:
    if match == FROM_LOOPBACK:
        return nf_tables.NFT_META_IIFNAME, nf_tables.NFT_CMP_EQ, f"{match.value}\0".encode()
    return nf_tables.NFT_META_MARK, nf_tables.NFT_CMP_NEQ, HOST_NUMBER.pack(match.value)


def _readings(family: Family, rule: NativeRule) -> list[Foreign]:
    return words_of(rule, family, lambda name: elements_of(OF_FAMILY[family], rule.table, name))
