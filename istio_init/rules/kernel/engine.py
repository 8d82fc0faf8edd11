"""Makes changes safe, whichever backend applies them.

It allows one writer at a time, compares before it writes, adds captures before it removes any, removes rules of ours from
other backends once the new ones are in place, and rolls back to the previous state if a step fails.
"""

from __future__ import annotations

from istio_init.core.errors import NotPermitted, ToolFault
from istio_init.core.light import TYPE_CHECKING, contextmanager
from istio_init.rules.changes import desired
from istio_init.rules.handover import diverting_marks
from istio_init.rules.kernel.ahead import warn_of_rules_ahead
from istio_init.rules.kernel.backend import BOTH_FAMILIES, Backend, Unread
from istio_init.rules.kernel.ends import warn_of_ends
from istio_init.rules.kernel.host import refuse_machine, refuse_node
from istio_init.rules.kernel.locks import USUAL_WAITS, Waits
from istio_init.rules.kernel.parts import Part, seen
from istio_init.rules.kernel.registry import AUTO, FALLBACK, PREFERRED, open_backend, open_rule_set
from istio_init.rules.kernel.report import Report, RoutesChanged
from istio_init.rules.kernel.rule_sets import occupied
from istio_init.rules.kernel.user_namespaces import refuse_unmapped
from istio_init.rules.kernel.writing import Writing
from istio_init.rules.model import NO_MARK, Family, Plan, Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from istio_init.core.runner import Observer
    from istio_init.rules.kernel.backend import Readings, Snapshots, Surroundings
    from istio_init.rules.model import Marks, Snapshot, TproxyRoute, Variant

NO_PLAN = Plan("", ())


def open_engine(
    name: str = AUTO,
    variant: Variant | None = None,
    waits: Waits = USUAL_WAITS,
    observe: Observer = lambda _: None,
    host: bool = False,  # noqa: FBT001, FBT002 - a value of the command line, in the order of its options
) -> Engine:
    """Create an engine from the names that the command line uses.

    Args:
        name: a backend of `registry.BACKENDS`, or `auto`: iptables where one of its variants works, else native nftables.
            iptables comes first because that is where people look for our rules.
        variant: the iptables variant to use; None detects it.
        waits: how long to wait for locks and for tools.
        observe: receives progress messages.
        host: whether a machine's own network namespace, or a Kubernetes node's, may be written to.

    Raises:
        InvalidInput: there is no such backend, or it contradicts the variant.
    """
    if name != AUTO:
        return Engine(open_backend(name, variant, waits, observe), observe, host=host)

    def fall_back() -> Backend:
        return open_backend(FALLBACK, None, waits, observe)

    preferred = open_backend(PREFERRED, variant, waits, observe)
    return Engine(preferred, observe, fall_back if variant is None else None, host=host)


class Engine:
    """Applies a plan to a network namespace, or removes all that is ours, through one backend.

    Args:
        backend: reads and writes rules.
        observe: receives progress messages.
        fall_back: creates the backend for families in which `backend` does not work here; None for no fallback.
        host: whether a machine's own network namespace, or a Kubernetes node's, may be written to; without it, either is
            refused (see `istio_init.rules.kernel.host`).
    """

    def __init__(
        self,
        backend: Backend,
        observe: Observer = lambda _: None,
        fall_back: Callable[[], Backend] | None = None,
        *,
        host: bool = True,
    ) -> None:
        self._backend = backend
        self._observe = observe
        self._fall_back = fall_back
        self._host = host

    def apply(self, plan: Plan, families: tuple[Family, ...] = BOTH_FAMILIES, warn: Observer = lambda _: None) -> Report:
        """Apply `plan`: afterwards either all of it is in place, or everything is as it was.

        This is idempotent: nothing is written when the plan is already in place. Our rules that were made through another
        backend are removed once those of this one are in place. Foreign rules and chains are not touched.

        Args:
            plan: the desired state.
            families: those to write.
            warn: receives what the user should know before anything is written; all else is in the report.

        Raises:
            InvalidInput, NotPermitted, Unsupported, LockHeld: by their exit codes; see `istio_init.core.errors`.
        """
        plan = plan.only(families)
        refuse_unmapped(plan)
        wanted = {family: desired(plan, family) for family in families}
        with self._opened() as hold:
            readings = self._backend.read(families)
            others, hidden = self._read_others(families)
            left_out = self._unreadable(readings, wanted, plan.optional)
            before, unseen = seen({family: one for family, one in readings.items() if family not in left_out})
            part = Part(self._backend, before, wanted)
            warn_of_ends([part, *others], wanted, warn)
            hold()
            with self._surroundings_added(plan) as added:
                written = Writing(part, others, self._fall_back)
                written.write(wanted, plan.optional)
            gone = self._tidy([part, *others], families, plan)
            replaced = [one for one in written.others if one.changes]
            skipped = left_out | written.left_out
            warnings = (
                *(
                    f"{family} rules are left out, because {family} does not work here: {why}"
                    for family, why in skipped.items()
                ),
                *unseen,
                *hidden,
                *written.warnings,
                *(f"{family} rules are in native nftables: {why}" for family, why in written.moved.items()),
                *(f"rules of ours that were made through another backend ({one.means}) were removed" for one in replaced),
                *warn_of_rules_ahead(written.parts, others, wanted, self._observe),
            )
            used = [one for one in written.parts if any(map(wanted.get, one.before))] or [part]
            return _report(used, families, [*used, *replaced], warnings, added, gone)._replace(left_out=frozenset(skipped))

    def remove(self, families: tuple[Family, ...] = BOTH_FAMILIES, warn: Observer = lambda _: None) -> Report:
        """Remove everything of ours and nothing else, whichever backend wrote it; this is idempotent. See `apply`.

        Raises:
            NotPermitted, Unsupported, LockHeld: by their exit codes; see `istio_init.core.errors`.
        """
        with self._opened() as hold:
            readings = self._backend.read(families)
            others, hidden = self._read_others(families)
            before, unseen = seen(readings)
            part = Part(self._backend, before, {})
            warn_of_ends([part, *others], {}, warn)
            hold()
            Writing(part, others).write({}, frozenset())
            gone = self._tidy([part, *others], families, NO_PLAN)
            parts = [one for one in (part, *others) if one.changes] or [part]
            return _report(parts, families, parts, (*unseen, *hidden), gone)

    def refuse_host(self, families: tuple[Family, ...] = BOTH_FAMILIES) -> None:
        """Refuse to go on in a network namespace in which `apply` would refuse to write, for what is done without an apply.

        What cannot be read is passed over here: who may not read rules cannot add interfaces either.

        Raises:
            InvalidInput: it is a machine's own, or a Kubernetes node's, and neither is meant.
        """
        if self._host:
            return
        refuse_machine()
        noted: set[str] = set()
        for backend, where in self._all(families):
            try:
                backend.read(where)
            except NotPermitted:
                continue
            noted |= backend.node_chains
        refuse_node(noted)

    @contextmanager
    def _opened(self) -> Iterator[Callable[[], None]]:
        """Hold the writer's lock on a network namespace that may be written to; see `Backend.locked` for what is yielded."""
        if not self._host:
            refuse_machine()
        with self._backend.locked() as hold:
            yield hold

    def _unreadable(
        self, readings: Readings, wanted: Mapping[Family, Snapshot], optional: frozenset[Family]
    ) -> dict[Family, str]:
        """Return the optional families that can be neither read nor written here, with the reasons."""
        unread = {f: one.why for f, one in readings.items() if isinstance(one, Unread) and f in optional}
        unsure = [family for family, why in unread.items() if not isinstance(why, (NotPermitted, ToolFault))]
        return self._backend.probe({f: next(iter(wanted[f]), Table.FILTER) for f in unsure}) if unsure else {}

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

    def _read_others(self, families: tuple[Family, ...]) -> tuple[list[Part], list[str]]:
        """Read our rules that were made through other backends; also return warnings about what this user may not see.

        All rule sets have then been read, so this is where a Kubernetes node is recognized, before anything is written.

        Raises:
            InvalidInput: this is a node.
            IstioInitError: a rule set that may hold rules of ours could not be read.
        """
        found, hidden = [], []
        noted = set(self._backend.node_chains)
        for backend, where in self._others(families):
            try:
                before, unseen = seen(backend.read(where))
            except NotPermitted as error:
                hidden += [f"there may be {family} rules of ours that were not seen: {error}" for family in where]
                continue
            hidden += unseen
            noted |= backend.node_chains
            found.append(Part(backend, before, {}))
        if not self._host:
            refuse_node(noted)
        return found, hidden

    def _all(self, families: tuple[Family, ...]) -> Iterator[tuple[Backend, tuple[Family, ...]]]:
        yield self._backend, families
        yield from self._others(families)

    def _others(self, families: tuple[Family, ...]) -> Iterator[tuple[Backend, tuple[Family, ...]]]:
        """Yield backends that may hold rules of ours that the last `read` did not return, with the families concerned."""
        yield from self._backend.besides()
        for rule_set, where in occupied(families, self._backend.rule_sets).items():
            yield open_rule_set(rule_set, self._backend.waits, self._observe), where

    def _tidy(self, parts: Sequence[Part], families: tuple[Family, ...], keep: Plan) -> RoutesChanged:
        """Remove the policy routes and addresses of ours that a plan does not have."""
        return RoutesChanged(
            routed=self._delete_routes([part.before for part in parts], families, keep),
            addressed=Family.IPV6 in families and self._delete_addresses(keep),
        )

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


def _report(
    used: Sequence[Part],
    families: tuple[Family, ...],
    parts: Sequence[Part],
    warnings: tuple[str, ...],
    *besides: RoutesChanged,
) -> Report:
    """Report on a change.

    Args:
        used: the parts that hold the plan.
        families: those that were asked for.
        parts: all parts.
        warnings: what the user should know.
        besides: what else was changed.
    """
    made = [change for part in parts for wanted in part.changes.values() for change in wanted]
    variants: dict[Family, Variant] = {}
    for part in used:
        variants |= part.backend.variants(families if part is used[0] else tuple(part.before))
    return Report(
        backend=" and ".join(part.backend.name for part in used),
        variants=variants,
        chains=sum(len(change.chains) + len(change.dropped) for change in made),
        rules=sum(
            sum(map(len, change.chains.values())) + len(change.added_jumps) + len(change.inserted_jumps) for change in made
        ),
        changed=bool(made) or any(map(any, besides)),
        routed=any(changed.routed for changed in besides),
        addressed=any(changed.addressed for changed in besides),
        warnings=(*warnings, *(notice for part in parts for notice in part.backend.notices)),
    )


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
        (family, mark) for snapshots in seen for family, tables in snapshots.items() for mark in diverting_marks(tables)
    )
