"""The steps of a change: what is written of a plan, through which backends, and how all of it is rolled back."""

from __future__ import annotations

from istio_init.core.errors import IstioInitError, ToolFault, Unsupported
from istio_init.core.light import TYPE_CHECKING
from istio_init.rules.handover import around, beside
from istio_init.rules.kernel.backend import Unread
from istio_init.rules.kernel.parts import Part, put_back, seen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from istio_init.rules.kernel.backend import Backend, Snapshots
    from istio_init.rules.model import Family, Snapshot


class Writing:
    """Commits the part of a plan, then removes what other backends made; if a step fails, everything is rolled back.

    Args:
        part: the plan's; it is to hold nothing when everything is to be removed.
        others: those of other backends, from which all rules of ours are to be removed.
        fall_back: creates the backend for families in which the plan's does not work here; None for no fallback.

    Attributes:
        parts: those that hold the plan.
        others: those from which rules of ours were removed.
        moved: the families that are in the fallback's part, with the errors that made it necessary.
        left_out: the families that are in none, with the reasons.
        warnings: what else the user should know.
    """

    def __init__(self, part: Part, others: Sequence[Part], fall_back: Callable[[], Backend] | None = None) -> None:
        self.parts = [part]
        self.others = list(others)
        self.moved: dict[Family, IstioInitError] = {}
        self.left_out: dict[Family, str] = {}
        self.warnings: list[str] = []
        self._fall_back = fall_back
        self._begun: list[Part] = []

    def write(self, wanted: Mapping[Family, Snapshot], optional: frozenset[Family]) -> None:
        """Make the change; where old and new rules meet, in more steps (see `istio_init.rules.handover`).

        Args:
            wanted: what the plan's part is to hold.
            optional: the families that may be left out.

        Raises:
            IstioInitError: a step failed; its notes say what there is now.
        """
        meanwhile = {family: self._beside_others(family, tables) for family, tables in wanted.items()}
        try:
            self._narrow_old(wanted)
            self._write_plan(meanwhile, optional)
            self._clear_others()
            if meanwhile != wanted:
                for last in [one.again(wanted) for one in self.parts]:
                    _raise_first(self._begin(last).commit()[0].values())
        except IstioInitError as error:
            put_back(self._begun[::-1], error)
            raise

    def _begin(self, part: Part) -> Part:
        self._begun.append(part)
        return part

    def _beside_others(self, family: Family, tables: Snapshot) -> Snapshot:
        tables = around(tables, self.parts[0].before.get(family, {}))
        for other in self.others:
            tables = beside(tables, other.before.get(family, {}))
        return tables

    def _narrow_old(self, wanted: Mapping[Family, Snapshot]) -> None:
        """Make the old rules bear the new ones."""
        for place, other in enumerate(self.others):
            tables = {family: beside(old, wanted.get(family, {})) for family, old in other.before.items()}
            if self._is_narrowed(other, tables):
                self.others[place] = other.again({})
        own = self.parts[0]
        self._is_narrowed(own, {family: around(old, wanted.get(family, {})) for family, old in own.before.items()})

    def _is_narrowed(self, part: Part, tables: Snapshots) -> bool:
        """Narrow old rules where they must be; where that does not work, it is a warning."""
        if tables == part.before:
            return False
        try:
            _raise_first(self._begin(Part(part.backend, part.before, tables)).commit()[0].values())
        except ToolFault:
            raise
        except Unsupported as error:
            self.warnings.append(f"connections may have been lost in this change: {error}")
        return True

    def _write_plan(self, wanted: Mapping[Family, Snapshot], optional: frozenset[Family]) -> None:
        part = self.parts[0]
        failed, left_out = self._begin(
            part.again(wanted) if self._begun else Part(part.backend, part.before, wanted)
        ).commit(frozenset() if self._fall_back else optional)
        part.drop({*failed, *left_out})
        self.left_out.update(left_out)
        if failed:
            self._move(failed, wanted, optional)

    def _clear_others(self) -> None:
        for other in self.others:
            # A rule set that the plan had to move to has it now, and nothing else of ours.
            other.drop([f for f in self.moved if other.backend.rule_sets <= self.parts[-1].backend.rule_sets])
            _raise_first(self._begin(other).commit()[0].values())

    def _move(
        self, failed: Mapping[Family, IstioInitError], wanted: Mapping[Family, Snapshot], optional: frozenset[Family]
    ) -> None:
        """Write the families in which iptables does not work through the fallback, and leave out what is optional.

        Raises:
            IstioInitError: a family of which rules of ours are in iptables, or in which the fallback does not work either.
        """
        if self._fall_back is None:
            _raise_first(failed.values())
            return
        part = self.parts[0]
        _raise_first(error for family, error in failed.items() if part.holds(family))
        backend = self._fall_back()
        readings = backend.read(tuple(failed))
        refused = {family: one.why for family, one in readings.items() if isinstance(one, Unread)}
        before, _ = seen({family: one for family, one in readings.items() if family not in refused})
        moved = self._begin(Part(backend, before, wanted))
        self.parts.append(moved)
        errors, left_out = moved.commit(optional)
        refused |= errors
        tables = {family: next(iter(wanted[family])) for family in refused if family in optional}
        left_out |= part.backend.probe(tables) if tables else {}
        for family, error in refused.items():
            if family not in left_out:
                failed[family].add_note(f"the fallback without iptables failed too: {error}")
                raise failed[family]
        self.left_out.update({family: str(failed[family]) for family in left_out})
        self.moved.update({family: error for family, error in failed.items() if family not in left_out})
        for family in failed:
            del part.before[family]


def _raise_first(errors: Iterable[IstioInitError]) -> None:
    for error in errors:
        raise error
