"""The contract of every backend: how the rules of one network namespace are tried, read and changed.

A backend says how one family is tried, read and changed in one transaction a table. What makes a change safe is written
once for all of them, in `istio_init.rules.kernel.engine`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from istio_init.core.light import TYPE_CHECKING, Protocol, contextmanager
from istio_init.rules.changes import TableChange, compare
from istio_init.rules.kernel.locks import LOCK_WAIT, namespace_lock, signals_held
from istio_init.rules.model import Family, Marks, Snapshot, Table, TproxyRoute, Variant

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from istio_init.core.errors import IstioInitError
    from istio_init.rules.kernel.rule_sets import RuleSet

BOTH_FAMILIES = tuple(Family)

Snapshots = dict[Family, Snapshot]
Changes = dict[Family, list[TableChange]]


class Surroundings(Protocol):
    """What a plan needs besides rules: policy routes and addresses of lo. See `istio_init.rules.kernel.surroundings`."""

    def find(self, marks: Marks) -> tuple[TproxyRoute, ...]:
        """List the policy routes of ours that are in place, and those of Istio's own tools with one of these marks."""

    def add(self, route: TproxyRoute) -> bool:
        """Make sure of a policy route, and return whether anything was missing."""

    def delete(self, route: TproxyRoute, *, only_ours: bool) -> None:
        """Remove a policy route; with `only_ours`, no part of it that a third party made."""

    def addresses(self) -> tuple[str, ...]:
        """List the addresses of lo that are ours, as CIDRs; all of them are IPv6."""

    def add_address(self, cidr: str) -> bool:
        """Make sure that lo has an address, and return whether it was missing."""

    def delete_address(self, cidr: str) -> None:
        """Remove an address of ours from lo."""


class Backend(ABC):
    """One way to reach the rules of this process's network namespace.

    Args:
        lock_wait: seconds to wait for another program that holds a lock.

    Attributes:
        name: as the command line has it.
        rule_sets: the kernel's sets of rules that `read` looks at.
        all_or_nothing: whether `commit` makes the changes of all families in one transaction.
        notices: what the next report has to mention besides.
    """

    name: str
    rule_sets: frozenset[RuleSet]
    all_or_nothing = False

    def __init__(self, lock_wait: int = LOCK_WAIT) -> None:
        self.lock_wait = lock_wait
        self.notices: list[str] = []

    @abstractmethod
    def probe(self, tables: Mapping[Family, Table]) -> dict[Family, str]:
        """Try whether one table of each family can really be written, and leave no rule behind.

        Returns:
            for each family that cannot be written, the reason.

        Raises:
            NotPermitted: a capability is missing.
            LockHeld: another program holds the lock.
        """

    @abstractmethod
    def read(self, families: tuple[Family, ...]) -> Snapshots:
        """Read what is in the kernel; a family that does not exist here reads as empty.

        Raises:
            IstioInitError: the kernel cannot be read, or not said which of two rule sets is meant.
        """

    @abstractmethod
    def commit(self, changes: Changes) -> dict[Family, IstioInitError]:
        """Make the changes, each table in one transaction, tables in the order given.

        Returns:
            for each family of which a transaction failed, the failure. That transaction did nothing and the ones after
            it were not tried; the ones before it, and those of other families, are made.

        Raises:
            NotPermitted, LockHeld: as for `probe`; other transactions may have been made.
        """

    @abstractmethod
    def variants(self, families: tuple[Family, ...]) -> dict[Family, Variant]:
        """Tell which variant each family is read and written through."""

    def difference(self, wanted: Snapshot, current: Snapshot) -> list[TableChange]:
        """Find the changes that lead one family from `current`, as it was read, to `wanted`; none when all is in place.

        Raises:
            Unsupported: a foreign rule uses a chain that would have to go.
        """
        return compare(wanted, current)

    def unread(self) -> dict[Family, IstioInitError]:
        """Tell the families of which the last `read` may have missed something, and why."""
        return {}

    def seen_in_part(self) -> frozenset[Family]:
        """Tell the families of which the last `read` saw all but what this user may not look at."""
        return frozenset()

    def besides(self) -> Iterable[tuple[Backend, tuple[Family, ...]]]:
        """Give backends for rules of ours that the last `read` met but does not return, each with the families of them."""
        return ()

    def is_unusable(self) -> bool:
        """Tell whether nothing that this backend works through exists here, so that another one may be tried instead."""
        return False

    def surroundings(self) -> Surroundings:
        """Give what reaches policy routes and addresses; imported only now, for most pods have none."""
        from istio_init.rules.kernel import surroundings

        return surroundings

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only writer, and let signals wait until the change is complete.

        Raises:
            LockHeld: another program holds the lock.
        """
        with namespace_lock(self.lock_wait), signals_held():
            yield
