"""An in-memory backend, for tests of programs built on this package. It passes the same contract suite as the real ones."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from istio_init.core.errors import IstioInitError, Unsupported
from istio_init.rules.changes import NOTHING
from istio_init.rules.kernel.backend import Backend, Changes, Readings, Snapshots, Whole
from istio_init.rules.kernel.rule_sets import RuleSet
from istio_init.rules.model import Family, Marks, Rule, Snapshot, Table, TableState, TproxyRoute, Variant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from istio_init.rules.changes import TableChange


class FakeBackend(Backend):
    """Holds rules in memory; each transaction is atomic.

    Args:
        broken: tables whose next transaction fails, to test how a program handles the failure.
        missing: families that the simulated kernel does not support.

    Attributes:
        kernel: the current rules, by family and table.
        transactions: number of committed transactions.
    """

    name = "fake"
    rule_sets = frozenset(RuleSet)

    def __init__(
        self,
        broken: frozenset[tuple[Family, Table]] = frozenset(),
        missing: frozenset[Family] = frozenset(),
    ) -> None:
        super().__init__()
        self.kernel: Snapshots = {family: {} for family in Family}
        self.transactions = 0
        self._broken = set(broken)
        self._missing = missing
        self._surroundings = FakeSurroundings()

    def variants(self, families: tuple[Family, ...]) -> dict[Family, Variant]:
        """Return the plain variant for each family; a fake has no other."""
        return dict.fromkeys(families, Variant.PLAIN)

    def probe(self, tables: Mapping[Family, Table]) -> dict[Family, str]:
        """Return the families declared missing, each with a reason."""
        return {family: f"this fake has no {family}" for family in tables if family in self._missing}

    def read(self, families: tuple[Family, ...]) -> Readings:
        """Return a copy of the current rules."""
        return {family: Whole(dict(self.kernel[family])) for family in families}

    def commit(self, changes: Changes) -> dict[Family, IstioInitError]:
        """Commit table by table; a family stops at its first failure."""
        failed = {family: self._commit_family(family, wanted) for family, wanted in changes.items()}
        return {family: error for family, error in failed.items() if error is not None}

    def _commit_family(self, family: Family, wanted: list[TableChange]) -> IstioInitError | None:
        for change in wanted:
            if family in self._missing:
                return Unsupported(f"this fake has no {family}")
            if (family, change.table) in self._broken:
                self._broken.discard((family, change.table))
                return Unsupported(f"this fake was told to fail in table {change.table} of {family}")
            changed = _changed(self.kernel[family], change)
            dangling = _dangling_jump(changed)
            if dangling:
                return Unsupported(f"table {change.table} of {family}: there is no chain {dangling} to jump to")
            self.kernel[family][change.table] = changed
            self.transactions += 1
        return None

    def rule_set(self, family: Family) -> RuleSet:
        """Return a rule set; a fake has but one, and stands for all of them."""
        del family
        return RuleSet.NATIVE

    def native_tables(self, family: Family) -> frozenset[str]:
        """Return no table: a fake shows nothing of the real kernel."""
        del family
        return frozenset()

    def surroundings(self) -> FakeSurroundings:
        """Return the policy routes and addresses of this fake."""
        return self._surroundings

    @contextmanager
    def locked(self) -> Iterator[Callable[[], None]]:
        """Take no lock: no other process can see these rules."""
        yield lambda: None


class FakeSurroundings:
    """Holds policy routes and addresses in memory; all of them are ours."""

    def __init__(self) -> None:
        """Start without routes or addresses."""
        self._routes: set[TproxyRoute] = set()
        self._addresses: set[str] = set()

    def find(self, marks: Marks) -> tuple[TproxyRoute, ...]:  # noqa: ARG002 - all are ours
        """List the policy routes in place."""
        return tuple(sorted(self._routes, key=lambda route: (tuple(Family).index(route.family), route)))

    def add(self, route: TproxyRoute) -> bool:
        """Add a policy route; return whether it was missing."""
        missing = route not in self._routes
        self._routes.add(route)
        return missing

    def delete(self, route: TproxyRoute, *, only_ours: bool) -> None:  # noqa: ARG002 - all are ours
        """Remove a policy route."""
        self._routes.discard(route)

    def addresses(self) -> tuple[str, ...]:
        """List the addresses added to lo, as CIDRs."""
        return tuple(sorted(self._addresses))

    def add_address(self, cidr: str) -> bool:
        """Add an address to lo; return whether it was missing."""
        missing = cidr not in self._addresses
        self._addresses.add(cidr)
        return missing

    def delete_address(self, cidr: str) -> None:
        """Remove an address from lo."""
        self._addresses.discard(cidr)


def _changed(tables: Snapshot, change: TableChange) -> TableState:
    before = tables.get(change.table, NOTHING)
    chains = {name: rules for name, rules in before.chains.items() if name not in change.dropped} | change.chains
    heads, jumps = (
        tuple(one for one in side if one not in change.removed_jumps) for side in (before.inserted, before.jumps)
    )
    return before._replace(chains=chains, jumps=jumps + change.added_jumps, inserted=change.inserted_jumps + heads)


def _dangling_jump(state: TableState) -> str:
    """Return the name of a missing chain that a rule jumps to, or ""; a kernel rejects such a transaction."""
    rules = [rule for rules in state.chains.values() for rule in rules] + [
        rule for _, rule in (*state.inserted, *state.jumps)
    ]
    destinations = (rule.target.chain for rule in rules if isinstance(rule, Rule))
    return next((chain for chain in destinations if chain and chain not in state.chains), "")
