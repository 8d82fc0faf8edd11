"""Makes changes safe, whichever backend applies them.

It allows one writer at a time, compares before it writes, adds captures before it removes any, removes rules of ours from
other backends once the new ones are in place, and rolls back to the previous state if a step fails.
"""

from __future__ import annotations

from istio_init.core.errors import CommandError, IstioInitError
from istio_init.core.light import TYPE_CHECKING, NamedTuple, contextmanager
from istio_init.rules.changes import desired, shadows
from istio_init.rules.kernel.backend import BOTH_FAMILIES, Backend, Changes, Snapshots
from istio_init.rules.kernel.locks import LOCK_WAIT
from istio_init.rules.kernel.registry import AUTO, FALLBACK, PREFERRED, open_backend, open_rule_set
from istio_init.rules.kernel.report import Report, RoutesChanged, means
from istio_init.rules.kernel.rule_sets import occupied
from istio_init.rules.model import NO_MARK, PROXY_SOURCE_IPV6, Family, Match, MatchKind, Plan, Rule, Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from istio_init.core.runner import Observer
    from istio_init.rules.kernel.backend import Surroundings
    from istio_init.rules.model import Marks, Snapshot, TproxyRoute, Variant

NO_PLAN = Plan("", ())
UNCHANGED = "nothing was changed"


class Other(NamedTuple):
    """Our rules that were made through another backend than the one in use, and the changes that remove them."""

    backend: Backend
    before: Snapshots
    changes: Changes

    @property
    def means(self) -> str:
        """How they are reached, such as `restore; ipv4 legacy`."""
        return means(self.backend.name, self.backend.variants(tuple(self.changes)))


def open_engine(
    name: str = AUTO,
    variant: Variant | None = None,
    lock_wait: int = LOCK_WAIT,
    observe: Observer = lambda _: None,
) -> Engine:
    """Create an engine from the names that the command line uses.

    Args:
        name: a backend of `registry.BACKENDS`, or `auto`: iptables where one of its variants works, else native nftables.
            iptables comes first because that is where people look for our rules.
        variant: the iptables variant to use; None detects it.
        lock_wait: seconds to wait for another program that holds a lock.
        observe: receives progress messages.

    Raises:
        InvalidInput: there is no such backend, or it contradicts the variant.
    """
    if name != AUTO:
        return Engine(open_backend(name, variant, lock_wait, observe), observe)

    def fall_back() -> Backend:
        return open_backend(FALLBACK, None, lock_wait, observe)

    preferred = open_backend(PREFERRED, variant, lock_wait, observe)
    return Engine(preferred, observe, fall_back if variant is None else None)


class Engine:
    """Applies a plan to a network namespace, or removes all that is ours, through one backend.

    Args:
        backend: reads and writes rules.
        observe: receives progress messages.
        fall_back: creates the backend to use where `backend` is not available at all; None for no fallback.
    """

    def __init__(
        self,
        backend: Backend,
        observe: Observer = lambda _: None,
        fall_back: Callable[[], Backend] | None = None,
    ) -> None:
        self._backend = backend
        self._observe = observe
        self._fall_back = fall_back

    def apply(self, plan: Plan, families: tuple[Family, ...] = BOTH_FAMILIES) -> Report:
        """Apply `plan`: afterwards either all of it is in place, or everything is as it was.

        This is idempotent: nothing is written when the plan is already in place. Our rules that were made through another
        backend are removed once those of this one are in place. Foreign rules and chains are not touched.

        Raises:
            InvalidInput, NotPermitted, Unsupported, LockHeld: by their exit codes; see `istio_init.core.errors`.
        """
        return self._or_else(lambda: self._apply(plan.only(families), families), lambda other: other.apply(plan, families))

    def _apply(self, plan: Plan, families: tuple[Family, ...]) -> Report:
        with self._backend.locked():
            before = self._backend.read(families)
            others, hidden = self._read_others(families)
            wanted = {family: desired(plan, family) for family in families}
            changes = {family: self._backend.difference(wanted[family], before[family]) for family in families}
            with self._surroundings_added(plan) as added:
                skipped = self._commit_or_put_back(before, changes, plan.optional)
                self._remove_others(others, before)
            # An earlier plan's rules show whether it had routes or addresses, so that pods without them need not look.
            seen = [before, *(other.before for other in others)]
            gone = RoutesChanged(
                routed=bool(_marks(seen)) and self._delete_routes(seen, families, plan),
                addressed=_have_proxy_source(seen) and self._delete_addresses(plan),
            )
            left_out = [f"{f} rules are left out, because {f} does not work here: {why}" for f, why in skipped.items()]
            unread = {family: why for family, why in self._backend.unread().items() if family not in skipped}
            replaced = [f"rules of ours that were made through another backend ({o.means}) were removed" for o in others]
            shadowed = [line for family in families for line in _shadowed(family, wanted[family], before[family])]
            warnings = (*left_out, *_unseen(unread), *hidden, *replaced, *shadowed)
            return self._report(families, (changes, *(other.changes for other in others)), warnings, added, gone)

    def remove(self, families: tuple[Family, ...] = BOTH_FAMILIES) -> Report:
        """Remove everything of ours and nothing else, whichever backend wrote it; this is idempotent.

        Raises:
            NotPermitted, Unsupported, LockHeld: by their exit codes; see `istio_init.core.errors`.
        """
        return self._or_else(lambda: self._remove(families), lambda other: other.remove(families))

    def _remove(self, families: tuple[Family, ...]) -> Report:
        with self._backend.locked():
            before = self._backend.read(families)
            warnings: list[str] = []
            for family, error in self._backend.unread().items():
                if family in self._backend.seen_in_part():
                    warnings += _unseen({family: error})
                    continue
                if family is Family.IPV4 or families != BOTH_FAMILIES:
                    raise error
                warnings.append(f"{family} was left alone, because its rules cannot be read: {error}")
            others, hidden = self._read_others(families)
            changes = {family: self._backend.difference({}, before[family]) for family in families}
            self._commit_or_put_back(before, changes, frozenset())
            self._remove_others(others, before)
            # In a family whose rules cannot be read, they may still need its routes and addresses.
            read = tuple(family for family in families if family not in self._backend.unread())
            gone = RoutesChanged(
                routed=self._delete_routes([before, *(other.before for other in others)], read, NO_PLAN),
                addressed=Family.IPV6 in read and self._delete_addresses(NO_PLAN),
            )
            made = (changes, *(other.changes for other in others))
            report = self._report(families, made, (*warnings, *hidden), gone)
            return report._replace(backend=" and ".join((self._backend.name, *(other.backend.name for other in others))))

    def _or_else(self, first: Callable[[], Report], second: Callable[[Engine], Report]) -> Report:
        """Use the backend, or the fallback if the backend is not available at all."""
        try:
            return first()
        except CommandError as error:
            if self._fall_back is None or not self._backend.is_unusable():
                raise
            self._observe(f"{self._backend.name} cannot be used here: {error}")
            try:
                return second(Engine(self._fall_back(), self._observe))
            except IstioInitError as other:
                error.add_note(f"the fallback without iptables failed too: {other}")
                raise error from None

    @contextmanager
    def _surroundings_added(self, plan: Plan) -> Iterator[RoutesChanged]:
        """Add the plan's missing addresses and routes before a block; if the block fails, roll them back."""
        if not (plan.addresses or plan.routes):
            yield RoutesChanged()
            return
        surroundings = self._backend.surroundings()
        addresses: list[str] = []
        routes: list[TproxyRoute] = []
        try:
            for cidr in plan.addresses:
                if surroundings.add_address(cidr):
                    addresses.append(cidr)  # noqa: PERF401 - those added before a failure are rolled back
            for route in plan.routes:
                if surroundings.add(route):
                    routes.append(route)  # noqa: PERF401 - as above
            yield RoutesChanged(bool(routes), bool(addresses))
        except BaseException:
            _take_back(surroundings, routes, addresses)
            raise

    def _read_others(self, families: tuple[Family, ...]) -> tuple[list[Other], list[str]]:
        """Read our rules that were made through other backends; also return warnings about what could not be read."""
        found, hidden = [], []
        for backend, where in self._others(families):
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

    def _others(self, families: tuple[Family, ...]) -> Iterator[tuple[Backend, tuple[Family, ...]]]:
        """Yield backends that may hold rules of ours that the last `read` did not return, with the families concerned."""
        yield from self._backend.besides()
        for rule_set, where in occupied(families, self._backend.rule_sets).items():
            yield open_rule_set(rule_set, self._backend.lock_wait, self._observe), where

    def _remove_others(self, others: Sequence[Other], before: Snapshots) -> None:
        """Remove our rules from other backends; if that fails, roll all backends back."""
        try:
            for other in others:
                for failure in other.backend.commit(other.changes).values():
                    raise failure
        except IstioInitError as error:
            _put_back([(self._backend, before), *((other.backend, other.before) for other in others)], error)
            raise

    def _delete_routes(self, seen: Sequence[Snapshots], families: tuple[Family, ...], keep: Plan) -> bool:
        """Remove the routes of `families` that a plan does not have; return whether there were any."""
        surroundings = self._backend.surroundings()
        # Without a mark: a route of ours that third-party rules use too, and that the plan keeps.
        kept = (*keep.routes, *(route._replace(mark=NO_MARK) for route in keep.routes))
        stale = [route for route in surroundings.find(_marks(seen)) if route.family in families and route not in kept]
        for route in stale:
            surroundings.delete(route, only_ours=False)
        return bool(stale)

    def _delete_addresses(self, keep: Plan) -> bool:
        """Remove the addresses that a plan does not have; return whether there were any."""
        surroundings = self._backend.surroundings()
        stale = [cidr for cidr in surroundings.addresses() if cidr not in keep.addresses]
        for cidr in stale:
            surroundings.delete_address(cidr)
        return bool(stale)

    def _commit_or_put_back(
        self,
        before: Snapshots,
        changes: Changes,
        optional: frozenset[Family],
    ) -> dict[Family, str]:
        """Commit, or roll back; return the optional families that do not work here, with reasons, and drop their changes."""
        writing = {family: wanted for family, wanted in changes.items() if wanted}
        if not writing:
            return {}
        try:
            skipped = self._commit(writing, optional)
        except IstioInitError as error:
            if self._backend.all_or_nothing:
                error.add_note(UNCHANGED)
            else:
                _put_back([(self._backend, {family: before[family] for family in writing})], error)
            raise
        for family in skipped:
            changes[family] = []
        return skipped

    def _commit(self, changes: Changes, optional: frozenset[Family]) -> dict[Family, str]:
        """Commit; return the optional families that do not work here (one transaction for all is retried without them).

        Raises:
            IstioInitError: a family failed that is not optional, or that works here.
        """
        failed = self._backend.commit(changes)
        skipped = self._not_working({family: changes[family][0].table for family in failed if family in optional})
        if skipped and self._backend.all_or_nothing:
            rest = {family: wanted for family, wanted in changes.items() if family not in skipped}
            failed = self._backend.commit(rest) if rest else {}
        for family, error in failed.items():
            if family not in skipped:
                raise error
        return skipped

    def _not_working(self, tables: Mapping[Family, Table]) -> dict[Family, str]:
        return self._backend.probe(tables) if tables else {}

    def _report(
        self, families: tuple[Family, ...], sets: Sequence[Changes], warnings: tuple[str, ...], *besides: RoutesChanged
    ) -> Report:
        made = [change for changes in sets for wanted in changes.values() for change in wanted]
        return Report(
            backend=self._backend.name,
            variants=self._backend.variants(families),
            chains=sum(len(change.chains) + len(change.dropped) for change in made),
            rules=sum(
                sum(map(len, change.chains.values())) + len(change.added_jumps) + len(change.inserted_jumps)
                for change in made
            ),
            changed=bool(made) or any(map(any, besides)),
            routed=any(changed.routed for changed in besides),
            addressed=any(changed.addressed for changed in besides),
            warnings=(*warnings, *self._backend.notices),
        )


def _shadowed(family: Family, wanted: Snapshot, current: Snapshot) -> list[str]:
    """Return a warning for each chain in which third-party rules take precedence over ours."""
    return [
        f"a third-party rule takes precedence over ours in {table} {chain} ({family}); what it matches bypasses the proxy: "
        f"`{rules[0]}`" + f" (and {len(rules) - 1} more)" * (len(rules) > 1) + "; delete it if this is not intended"
        for (table, chain), rules in shadows(wanted, current).items()
    ]


def _unseen(unread: Mapping[Family, IstioInitError]) -> list[str]:
    return [f"there may be {family} rules of ours that were not seen: {why}" for family, why in unread.items()]


def _put_back(parts: Sequence[tuple[Backend, Snapshots]], cause: IstioInitError) -> None:
    """Roll back the rules of backends, and add a note to the error that made it necessary."""
    try:
        undone = [_undo(backend, before) for backend, before in parts]
    except IstioInitError as error:
        message = f"{cause}; the rollback failed too: {error}"
        raise IstioInitError(message) from cause
    cause.add_note("the previous rules are in place again (rollback)" if any(undone) else UNCHANGED)


def _undo(backend: Backend, before: Snapshots) -> bool:
    """Roll back the rules of a backend; return whether any were different.

    Raises:
        IstioInitError: a transaction failed.
    """
    now = backend.read(tuple(before))
    changes = {family: backend.difference(before[family], now[family]) for family in before}
    changes = {family: wanted for family, wanted in changes.items() if wanted}
    if changes:
        for failure in backend.commit(changes).values():
            raise failure
    return bool(changes)


def _take_back(surroundings: Surroundings, routes: list[TproxyRoute], addresses: list[str]) -> None:
    """Remove what was added, in reverse order; a part that cannot be removed does not stop the others."""
    try:
        if routes:
            surroundings.delete(routes.pop(), only_ours=True)
        elif addresses:
            surroundings.delete_address(addresses.pop())
    finally:
        if routes or addresses:
            _take_back(surroundings, routes, addresses)


def _marks(seen: Iterable[Snapshots]) -> Marks:
    """Return the marks that our rules, or those of Istio's own tools, set to divert packets."""
    return frozenset(
        (family, rule.target.mark)
        for snapshots in seen
        for family, tables in snapshots.items()
        if Table.MANGLE in tables
        for rule in tables[Table.MANGLE].chains.get("ISTIO_DIVERT", ())
        if isinstance(rule, Rule) and rule.target.mark is not None
    )


def _have_proxy_source(seen: Iterable[Snapshots]) -> bool:
    """Return whether rules match the proxy's IPv6 source address on lo."""
    states = (state for snapshots in seen for state in snapshots.get(Family.IPV6, {}).values())
    rules = (rule for state in states for chain in state.chains.values() for rule in chain)
    wanted = Match(MatchKind.SOURCE, PROXY_SOURCE_IPV6)
    return any(isinstance(rule, Rule) and wanted in rule.matches for rule in rules)
