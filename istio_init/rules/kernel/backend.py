"""The contract of every backend: `probe`, `read`, `apply`, `remove`.

A backend says how one family is tried, read and changed in one transaction a table. What makes a change safe is written
here once for all of them: one writer at a time, compare first, captures gained before captures lost, and the state before
put back when a part fails.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from istio_init.core.errors import IstioInitError
from istio_init.rules.changes import TableChange, compare, desired, shadows
from istio_init.rules.kernel.locks import LOCK_WAIT, namespace_lock, signals_held
from istio_init.rules.kernel.report import Report, Surroundings, means
from istio_init.rules.model import (
    NO_MARK,
    PROXY_SOURCE_IPV6,
    Family,
    Marks,
    Match,
    MatchKind,
    Plan,
    Rule,
    Snapshot,
    Table,
    TproxyRoute,
    Variant,
)

BOTH_FAMILIES = tuple(Family)
NO_PLAN = Plan("", ())

Snapshots = dict[Family, Snapshot]
Changes = dict[Family, list[TableChange]]


class Other(NamedTuple):
    """Rules of ours that were made through another backend than the one at work, and the changes that remove them."""

    backend: "Backend"
    before: Snapshots
    changes: Changes

    @property
    def means(self) -> str:
        """How they are reached, such as `restore; ipv4 legacy`."""
        return means(self.backend.name, self.backend.variants(tuple(self.changes)))


class Backend(ABC):
    """One way to reach the rules of this process's network namespace.

    Args:
        lock_wait: seconds to wait for another program that holds a lock.
    """

    name: str

    def __init__(self, lock_wait: int = LOCK_WAIT) -> None:
        self.lock_wait = lock_wait
        self._notices: list[str] = []  # what the next report should tell besides

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

    def routes(self, marks: Marks = frozenset()) -> tuple[TproxyRoute, ...]:
        """List the policy routes of ours that are in place, and those of Istio's own tools with one of these marks."""
        from istio_init.rules.kernel import surroundings

        return surroundings.find(marks)

    def add_route(self, route: TproxyRoute) -> bool:
        """Make sure of a policy route, and tell whether anything was missing."""
        from istio_init.rules.kernel import surroundings

        return surroundings.add(route)

    def delete_route(self, route: TproxyRoute, *, only_ours: bool = False) -> None:
        """Remove a policy route; with `only_ours`, no part of it that somebody else made."""
        from istio_init.rules.kernel import surroundings

        surroundings.delete(route, only_ours=only_ours)

    def addresses(self) -> tuple[str, ...]:
        """List the addresses of lo that are ours, as CIDRs; all of them are of IPv6."""
        from istio_init.rules.kernel import surroundings

        return surroundings.addresses()

    def add_address(self, cidr: str) -> bool:
        """Make sure that lo has an address, and tell whether it was missing."""
        from istio_init.rules.kernel import surroundings

        return surroundings.add_address(cidr)

    def delete_address(self, cidr: str) -> None:
        """Take an address of ours from lo."""
        from istio_init.rules.kernel import surroundings

        surroundings.delete_address(cidr)

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

    def others(self, families: tuple[Family, ...]) -> Iterable[tuple["Backend", tuple[Family, ...]]]:  # noqa: ARG002 - a default
        """Find the backends that may hold rules of ours besides those of the last `read`, each with the families of them."""
        return ()

    def apply(self, plan: Plan, families: tuple[Family, ...] = BOTH_FAMILIES) -> Report:
        """Bring the kernel to `plan`: afterwards all of it is in place, or all is as it was.

        Nothing is written when the plan is in place already. Rules of ours that were made through another backend are
        removed once those of this one are in place. Foreign rules and chains are not touched.

        Raises:
            InvalidInput, NotPermitted, Unsupported, LockHeld: by their exit codes; see `istio_init.core.errors`.
        """
        plan = plan.only(families)
        with self._locked():
            before = self.read(families)
            others, hidden = self._read_others(families)
            wanted = {family: desired(plan, family) for family in families}
            changes = {family: self.difference(wanted[family], before[family]) for family in families}
            with self._surroundings_added(plan) as added:
                skipped = self._commit_or_put_back(before, changes, plan.optional)
                self._remove_others(others, before)
            # The rules of an earlier plan tell what it had besides, so that pods without any of it need not look.
            seen = [before, *(other.before for other in others)]
            gone = Surroundings(
                routed=bool(_marks(seen)) and self._delete_routes(seen, families, plan),
                addressed=_have_proxy_source(seen) and self._delete_addresses(plan),
            )
            left_out = [f"{f} rules are left out, for {f} does not work here: {why}" for f, why in skipped.items()]
            unread = {family: why for family, why in self.unread().items() if family not in skipped}
            replaced = [f"rules of ours that were made through another backend ({o.means}) were removed" for o in others]
            shadowed = [line for family in families for line in _shadowed(family, wanted[family], before[family])]
            warnings = (*left_out, *_unseen(unread), *hidden, *replaced, *shadowed)
            return self._report(families, (changes, *(other.changes for other in others)), warnings, added, gone)

    def remove(self, families: tuple[Family, ...] = BOTH_FAMILIES) -> Report:
        """Remove all that is ours and nothing else, whichever backend made it; it is no error when there is nothing.

        Raises:
            NotPermitted, Unsupported, LockHeld: by their exit codes; see `istio_init.core.errors`.
        """
        with self._locked():
            before = self.read(families)
            warnings: list[str] = []
            for family, error in self.unread().items():
                if family in self.seen_in_part():
                    warnings += _unseen({family: error})
                    continue
                if family is Family.IPV4 or families != BOTH_FAMILIES:
                    raise error
                warnings.append(f"{family} was left alone, for its rules cannot be read: {error}")
            others, hidden = self._read_others(families)
            changes = {family: self.difference({}, before[family]) for family in families}
            self._commit_or_put_back(before, changes, frozenset())
            self._remove_others(others, before)
            # A family whose rules cannot be read keeps what they may need.
            read = tuple(family for family in families if family not in self.unread())
            gone = Surroundings(
                routed=self._delete_routes([before, *(other.before for other in others)], read, NO_PLAN),
                addressed=Family.IPV6 in read and self._delete_addresses(NO_PLAN),
            )
            made = (changes, *(other.changes for other in others))
            report = self._report(families, made, (*warnings, *hidden), gone)
            return report._replace(backend=" and ".join((self.name, *(other.backend.name for other in others))))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with namespace_lock(self.lock_wait), signals_held():
            yield

    @contextmanager
    def _surroundings_added(self, plan: Plan) -> Iterator[Surroundings]:
        """Make sure of the plan's addresses and routes for a block, and take back those that were made if it fails."""
        with ExitStack() as undo:
            addresses, routes = [], []
            for cidr in plan.addresses:
                if self.add_address(cidr):
                    addresses.append(cidr)
                    undo.callback(self.delete_address, cidr)
            for route in plan.routes:
                if self.add_route(route):
                    routes.append(route)
                    undo.callback(self.delete_route, route, only_ours=True)
            yield Surroundings(bool(routes), bool(addresses))
            undo.pop_all()

    def _read_others(self, families: tuple[Family, ...]) -> tuple[list[Other], list[str]]:
        """Read the rules of ours that were made through other backends, and say what cannot be read."""
        found, hidden = [], []
        for backend, where in self.others(families):
            try:
                before = backend.read(where)
            except IstioInitError as error:
                hidden += _unseen(dict.fromkeys(where, error))
                continue
            hidden += _unseen(backend.unread())
            changes = {family: backend.difference({}, before[family]) for family in where}
            if any(changes.values()):
                found.append(Other(backend, before, {family: made for family, made in changes.items() if made}))
        return found, hidden

    def _remove_others(self, others: Sequence[Other], before: Snapshots) -> None:
        """Remove what other backends made, or put back all that was there before."""
        try:
            for other in others:
                for failure in other.backend.commit(other.changes).values():
                    raise failure
        except IstioInitError as error:
            _put_back([(self, before), *((other.backend, other.before) for other in others)], error)
            raise

    def _delete_routes(self, seen: Sequence[Snapshots], families: tuple[Family, ...], keep: Plan) -> bool:
        """Remove the routes of `families` that a plan does not have."""
        # A route of ours that another's rule leads to is part of the one that is kept.
        kept = (*keep.routes, *(route._replace(mark=NO_MARK) for route in keep.routes))
        stale = [route for route in self.routes(_marks(seen)) if route.family in families and route not in kept]
        for route in stale:
            self.delete_route(route)
        return bool(stale)

    def _delete_addresses(self, keep: Plan) -> bool:
        """Remove the addresses that a plan does not have."""
        stale = [cidr for cidr in self.addresses() if cidr not in keep.addresses]
        for cidr in stale:
            self.delete_address(cidr)
        return bool(stale)

    def _commit_or_put_back(
        self,
        before: Snapshots,
        changes: Changes,
        optional: frozenset[Family],
    ) -> dict[Family, str]:
        """Commit; give the optional families that turn out not to work here at all, and why, and drop their changes."""
        writing = {family: wanted for family, wanted in changes.items() if wanted}
        if not writing:
            return {}
        try:
            failed = self.commit(writing)
            skipped = self._not_working({family: writing[family][0].table for family in failed if family in optional})
            for family in failed:
                if family not in skipped:
                    raise failed[family]
        except IstioInitError as error:
            _put_back([(self, {family: before[family] for family in writing})], error)
            raise
        for family in skipped:
            changes[family] = []
        return skipped

    def _not_working(self, tables: Mapping[Family, Table]) -> dict[Family, str]:
        return self.probe(tables) if tables else {}

    def undo(self, before: Snapshots) -> bool:
        """Bring rules back to what they were, and tell whether any were different.

        Raises:
            IstioInitError: a transaction failed.
        """
        now = self.read(tuple(before))
        changes = {family: self.difference(before[family], now[family]) for family in before}
        changes = {family: wanted for family, wanted in changes.items() if wanted}
        if changes:
            for failure in self.commit(changes).values():
                raise failure
        return bool(changes)

    def _report(
        self, families: tuple[Family, ...], sets: Sequence[Changes], warnings: tuple[str, ...], *besides: Surroundings
    ) -> Report:
        made = [change for changes in sets for wanted in changes.values() for change in wanted]
        return Report(
            backend=self.name,
            variants=self.variants(families),
            chains=sum(len(change.chains) + len(change.dropped) for change in made),
            rules=sum(
                sum(map(len, change.chains.values())) + len(change.added_jumps) + len(change.inserted_jumps)
                for change in made
            ),
            changed=bool(made) or any(map(any, besides)),
            routed=any(changed.routed for changed in besides),
            addressed=any(changed.addressed for changed in besides),
            warnings=(*warnings, *self._notices),
        )


def _shadowed(family: Family, wanted: Snapshot, current: Snapshot) -> list[str]:
    """Tell the foreign rules that keep connections from ours."""
    return [
        f"a rule of others stands before ours in {table} {chain} ({family}), and what it matches does not reach the proxy: "
        f"`{rules[0]}`" + f" (and {len(rules) - 1} more)" * (len(rules) > 1) + "; delete it if that is not meant"
        for (table, chain), rules in shadows(wanted, current).items()
    ]


def _unseen(unread: Mapping[Family, IstioInitError]) -> list[str]:
    return [f"there may be {family} rules of ours that were not seen: {why}" for family, why in unread.items()]


def _put_back(parts: Sequence[tuple[Backend, Snapshots]], cause: IstioInitError) -> None:
    """Bring the rules of backends back to what they were, and note it on the error that made it necessary."""
    try:
        undone = [backend.undo(before) for backend, before in parts]
    except IstioInitError as error:
        message = f"{cause}; putting back what was there before failed too: {error}"
        raise IstioInitError(message) from cause
    cause.add_note("what was there before is in place again" if any(undone) else "nothing had been changed")


def _marks(seen: Iterable[Snapshots]) -> Marks:
    """Give the marks that rules of ours, or of Istio's own tools, divert packets with."""
    return frozenset(
        (family, rule.target.mark)
        for snapshots in seen
        for family, tables in snapshots.items()
        if Table.MANGLE in tables
        for rule in tables[Table.MANGLE].chains.get("ISTIO_DIVERT", ())
        if isinstance(rule, Rule) and rule.target.mark is not None
    )


def _have_proxy_source(seen: Iterable[Snapshots]) -> bool:
    """Tell whether rules look for what the proxy sends from the address that it has on lo in IPv6."""
    states = (state for snapshots in seen for state in snapshots.get(Family.IPV6, {}).values())
    rules = (rule for state in states for chain in state.chains.values() for rule in chain)
    wanted = Match(MatchKind.SOURCE, PROXY_SOURCE_IPV6)
    return any(isinstance(rule, Rule) and wanted in rule.matches for rule in rules)
