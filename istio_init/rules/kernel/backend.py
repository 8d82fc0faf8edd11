"""The contract of every backend: how the rules of one network namespace are probed, read and changed.

A backend probes, reads and changes one family, in one transaction per table. What makes a change safe is implemented once
for all of them, in `istio_init.rules.kernel.engine`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from istio_init.core.light import TYPE_CHECKING, NamedTuple, Protocol, contextmanager
from istio_init.rules.changes import TableChange, compare
from istio_init.rules.kernel.locks import USUAL_WAITS, Waits, ended_by_signals, namespace_lock
from istio_init.rules.model import Family, Marks, Snapshot, Table, TproxyRoute, Variant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from istio_init.core.errors import IstioInitError
    from istio_init.rules.kernel.rule_sets import RuleSet

BOTH_FAMILIES = tuple(Family)

Snapshots = dict[Family, Snapshot]


class Whole(NamedTuple):
    """All that one family's tables hold; a family that does not exist here holds nothing."""

    tables: Snapshot


class Partial(NamedTuple):
    """What this user may see of one family's tables, and why there may be more."""

    visible: Snapshot
    why: IstioInitError


class Unread(NamedTuple):
    """One family's tables could not be read, so they may hold anything."""

    why: IstioInitError


Reading = Whole | Partial | Unread
Readings = dict[Family, Reading]
Changes = dict[Family, list[TableChange]]


class Surroundings(Protocol):
    """What a plan needs besides rules: policy routes and addresses of lo. See `istio_init.rules.kernel.surroundings`."""

    def find(self, marks: Marks) -> tuple[TproxyRoute, ...]:
        """List the policy routes of ours that are in place, and those of Istio's own tools with one of these marks."""

    def add(self, route: TproxyRoute) -> bool:
        """Ensure that a policy route exists, and return whether anything was missing."""

    def delete(self, route: TproxyRoute, *, only_ours: bool) -> None:
        """Remove a policy route; with `only_ours`, leave parts that a third party made."""

    def addresses(self) -> tuple[str, ...]:
        """List the addresses of lo that are ours, as CIDRs; all of them are IPv6."""

    def add_address(self, cidr: str) -> bool:
        """Ensure that lo has an address, and return whether it was missing."""

    def delete_address(self, cidr: str) -> None:
        """Remove an address of ours from lo."""


class Backend(ABC):
    """One way to read and write the rules of this process's network namespace.

    Args:
        waits: how long to wait for locks and for tools.

    Attributes:
        name: the name on the command line.
        rule_sets: the kernel's rule sets that `read` covers.
        all_or_nothing: whether `commit` uses one transaction for all families.
        notices: additional warnings for the next report.
        node_chains: chains that only a Kubernetes node has, of those in legacy tables that `read` came across.
    """

    name: str
    rule_sets: frozenset[RuleSet]
    all_or_nothing = False

    def __init__(self, waits: Waits = USUAL_WAITS) -> None:
        self.waits = waits
        self.notices: list[str] = []
        self.node_chains: set[str] = set()

    @abstractmethod
    def probe(self, tables: Mapping[Family, Table]) -> dict[Family, str]:
        """Test whether the given table of each family can be written, without leaving a rule behind.

        Returns:
            the reason, for each family that cannot be written.

        Raises:
            NotPermitted: a capability is missing.
            LockHeld: another program holds the lock.
        """

    @abstractmethod
    def read(self, families: tuple[Family, ...]) -> Readings:
        """Read the rules in the kernel, and say of each family how much of it could be seen.

        Raises:
            NotPermitted: a capability is missing.
            LockHeld: another program holds the lock.
        """

    @abstractmethod
    def commit(self, changes: Changes) -> dict[Family, IstioInitError]:
        """Commit the changes, each table in one transaction, in the order given.

        Returns:
            the error, for each family with a failed transaction. That transaction had no effect, and later ones were not
            tried; earlier ones, and those of other families, are committed.

        Raises:
            NotPermitted, LockHeld: as for `probe`; other transactions may have been committed.
        """

    @abstractmethod
    def variants(self, families: tuple[Family, ...]) -> dict[Family, Variant]:
        """Return the variant through which each family is read and written."""

    def rule_set(self, family: Family) -> RuleSet:
        """Return the rule set that holds a family's rules."""
        del family
        (only,) = self.rule_sets
        return only

    def beside(self, family: Family) -> Snapshot:
        """Return what the last `read` found in legacy tables, if that is not where the family's rules are."""
        del family
        return {}

    def native_tables(self, family: Family) -> frozenset[str]:
        """Return the tables of nf_tables that may hold rules of others, besides those that `read` returned.

        Raises:
            Unsupported: they could not be listed.
        """
        from istio_init.rules.kernel.rule_sets import foreign_tables

        return foreign_tables(family, self.rule_set(family))

    def difference(self, wanted: Snapshot, current: Snapshot) -> list[TableChange]:
        """Return the changes that turn `current`, as read, into `wanted`, for one family; empty if nothing differs.

        Raises:
            Unsupported: a third-party rule uses a chain that would have to be removed.
        """
        return compare(wanted, current)

    def besides(self) -> Iterable[tuple[Backend, tuple[Family, ...]]]:
        """Return backends for rules of ours that the last `read` found but did not return, each with their families."""
        return ()

    def surroundings(self) -> Surroundings:
        """Return the client for policy routes and addresses; imported only here, because most pods have none."""
        from istio_init.rules.kernel import surroundings

        return surroundings

    @contextmanager
    def locked(self) -> Iterator[Callable[[], None]]:
        """Hold the lock of the only writer.

        Yields:
            a function to call before the first change: until then signals end this run at once, and from then on they wait
            for the end of the block.

        Raises:
            LockHeld: another program holds the lock.
            Ended: a signal came before the first change.
        """
        with ended_by_signals() as hold, namespace_lock(self.waits.lock):
            yield hold
