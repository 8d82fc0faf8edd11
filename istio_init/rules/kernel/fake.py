"""A kernel in memory, for tests of what is built on this package. The contract suite holds it to the real ones."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from istio_init.core.errors import IstioInitError, Unsupported
from istio_init.rules.changes import NOTHING
from istio_init.rules.kernel.backend import Backend, Changes, Snapshots
from istio_init.rules.kernel.rule_sets import RuleSet
from istio_init.rules.model import Family, Marks, Rule, Snapshot, Table, TableState, TproxyRoute, Variant

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from istio_init.rules.changes import TableChange


class FakeBackend(Backend):
    """Holds rules in memory; each transaction is atomic.

    Args:
        broken: tables whose next transaction fails, for tests of what a user's program does then.
        missing: families that this kernel does not have.

    Attributes:
        kernel: what was written, by family and table.
        transactions: how many were made.
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
        """There is only one variant of a fake."""
        return dict.fromkeys(families, Variant.PLAIN)

    def probe(self, tables: Mapping[Family, Table]) -> dict[Family, str]:
        """Tell the families that were declared missing."""
        return {family: f"this fake has no {family}" for family in tables if family in self._missing}

    def read(self, families: tuple[Family, ...]) -> Snapshots:
        """Return a copy of what was written."""
        return {family: dict(self.kernel[family]) for family in families}

    def commit(self, changes: Changes) -> dict[Family, IstioInitError]:
        """Change table after table; a family ends at its first broken one."""
        failed = {family: self._commit_family(family, wanted) for family, wanted in changes.items()}
        return {family: error for family, error in failed.items() if error is not None}

    def _commit_family(self, family: Family, wanted: list[TableChange]) -> IstioInitError | None:
        for change in wanted:
            if family in self._missing:
                return Unsupported(f"this fake has no {family}")
            if (family, change.table) in self._broken:
                self._broken.discard((family, change.table))
                return Unsupported(f"this fake was told to fail in table {change.table} of {family}")
            made = _made(self.kernel[family], change)
            lost = _lost_jump(made)
            if lost:
                return Unsupported(f"table {change.table} of {family}: there is no chain {lost} to jump to")
            self.kernel[family][change.table] = made
            self.transactions += 1
        return None

    def surroundings(self) -> FakeSurroundings:
        """Return the policy routes and addresses of this fake."""
        return self._surroundings

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock nothing: nobody else knows of this kernel."""
        yield


class FakeSurroundings:
    """Holds policy routes and addresses in memory; all of them are ours."""

    def __init__(self) -> None:
        """Begin with none."""
        self._routes: set[TproxyRoute] = set()
        self._addresses: set[str] = set()

    def find(self, marks: Marks) -> tuple[TproxyRoute, ...]:  # noqa: ARG002 - all are ours
        """List the policy routes in place."""
        return tuple(sorted(self._routes, key=lambda route: (tuple(Family).index(route.family), route)))

    def add(self, route: TproxyRoute) -> bool:
        """Remember a policy route."""
        missing = route not in self._routes
        self._routes.add(route)
        return missing

    def delete(self, route: TproxyRoute, *, only_ours: bool) -> None:  # noqa: ARG002 - all are ours
        """Forget a policy route."""
        self._routes.discard(route)

    def addresses(self) -> tuple[str, ...]:
        """List the addresses of lo that were given."""
        return tuple(sorted(self._addresses))

    def add_address(self, cidr: str) -> bool:
        """Remember an address of lo."""
        missing = cidr not in self._addresses
        self._addresses.add(cidr)
        return missing

    def delete_address(self, cidr: str) -> None:
        """Forget an address of lo."""
        self._addresses.discard(cidr)


def _made(tables: Snapshot, change: TableChange) -> TableState:
    before = tables.get(change.table, NOTHING)
    chains = {name: rules for name, rules in before.chains.items() if name not in change.dropped} | change.chains
    heads, jumps = (
        tuple(one for one in side if one not in change.removed_jumps) for side in (before.inserted, before.jumps)
    )
    return before._replace(chains=chains, jumps=jumps + change.added_jumps, inserted=change.inserted_jumps + heads)


def _lost_jump(state: TableState) -> str:
    """Name a chain that a rule jumps to and that does not exist; a kernel refuses such a transaction."""
    rules = [rule for rules in state.chains.values() for rule in rules] + [
        rule for _, rule in (*state.inserted, *state.jumps)
    ]
    goals = (rule.target.chain for rule in rules if isinstance(rule, Rule))
    return next((goal for goal in goals if goal and goal not in state.chains), "")
