"""Compares the desired state with the kernel's current state, and computes the changes between them. Pure."""

from istio_init.core.errors import Unsupported
from istio_init.core.light import TYPE_CHECKING, NamedTuple
from istio_init.rules.model import BUILTIN_CHAINS, FIRST, Family, KernelRule, Plan, Rule, Snapshot, Table, TableState

if TYPE_CHECKING:
    from collections.abc import Iterable

NOTHING = TableState({})


class TableChange(NamedTuple):
    """One transaction on one table: afterwards our chains and jumps are as wanted, and nothing else has changed.

    Attributes:
        table: which table.
        chains: chains to create, or to replace with this content.
        dropped: chains to remove.
        removed_jumps: `(built-in chain, rule)` to delete.
        added_jumps: `(built-in chain, rule)` to append.
        inserted_jumps: `(built-in chain, rule)` to insert at the head, in their final order.
    """

    table: Table
    chains: dict[str, tuple[KernelRule, ...]]
    dropped: tuple[str, ...] = ()
    removed_jumps: tuple[tuple[str, KernelRule], ...] = ()
    added_jumps: tuple[tuple[str, KernelRule], ...] = ()
    inserted_jumps: tuple[tuple[str, KernelRule], ...] = ()


def desired(plan: Plan, family: Family) -> Snapshot:
    """Return the desired state of one family's tables."""
    tables: Snapshot = {}
    for chain in plan.chains:
        if chain.family is not family:
            continue
        state = tables.get(chain.table, NOTHING)
        if chain.name in BUILTIN_CHAINS:
            state = state._replace(
                jumps=(*state.jumps, *((chain.name, rule) for rule in chain.rules)),
                inserted=(*state.inserted, *((chain.name, rule) for rule in chain.inserted)),
            )
        else:
            state = state._replace(chains={**state.chains, chain.name: chain.rules})
        tables[chain.table] = state
    return tables


def compare(wanted: Snapshot, current: Snapshot) -> list[TableChange]:
    """Return the changes that turn `current` into `wanted`; empty if nothing differs.

    Tables that gain rules come before those that only lose rules: a connection opened in between is then captured twice
    rather than not at all.

    Raises:
        Unsupported: a third-party rule uses a chain that would have to be removed.
    """
    gaining = [table for table in Table if table in wanted]
    losing = [table for table in Table if table in current and table not in wanted]
    changes = (_compare_table(t, wanted.get(t, NOTHING), current.get(t, NOTHING)) for t in (*gaining, *losing))
    return [change for change in changes if change is not None]


def _compare_table(table: Table, wanted: TableState, current: TableState) -> TableChange | None:
    chains = {name: rules for name, rules in wanted.chains.items() if not _same_rules(rules, current.chains.get(name))}
    dropped = tuple(name for name in current.chains if name not in wanted.chains)
    for name, user in current.users:
        if name in dropped:
            message = (
                f"chain {name} of table {table} cannot be removed: third-party chain {user} jumps to it; "
                f"delete that rule (iptables -t {table} -S {user} shows it) and run this again"
            )
            raise Unsupported(message)
    jumps_differ = not all(has_same_jumps(wanted, current, chain) for chain in BUILTIN_CHAINS)
    if not (chains or dropped or jumps_differ):
        return None
    return TableChange(
        table,
        chains,
        dropped,
        removed_jumps=(*current.inserted, *current.jumps) if jumps_differ else (),
        added_jumps=wanted.jumps if jumps_differ else (),
        inserted_jumps=wanted.inserted if jumps_differ else (),
    )


def _same_rules(wanted: tuple[KernelRule, ...], current: tuple[KernelRule, ...] | None) -> bool:
    if current is None or len(wanted) != len(current):
        return False
    return all(ours.does_the_same_as(theirs) for ours, theirs in zip(wanted, current, strict=True))


def stand_first(rules: "Iterable[KernelRule]") -> bool:
    """Return whether rules of ours in a built-in chain are to stand before third-party ones, whenever those came."""
    return any(isinstance(rule, Rule) and FIRST in rule.matches for rule in rules)


def has_same_jumps(wanted: TableState, current: TableState, chain: str) -> bool:
    """Return whether our rules in one built-in chain are in place, in order, with those for its head before all others."""
    heads, found = _jumps_of(wanted.inserted, chain), _jumps_of(current.inserted, chain)
    others = _jumps_of(wanted.jumps, chain), _jumps_of(current.jumps, chain)
    return len(heads) <= len(found) and _same_rules(heads + others[0], found + others[1])


def _jumps_of(jumps: tuple[tuple[str, KernelRule], ...], chain: str) -> tuple[KernelRule, ...]:
    return tuple(rule for name, rule in jumps if name == chain)
