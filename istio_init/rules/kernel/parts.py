"""One backend's part of a change: what it held before, and what it is to change. A change may have several parts.

Parts are committed one after the other, and rolled back together when one of them fails.
"""

from __future__ import annotations

from istio_init.core.errors import IstioInitError, ToolFault, Unsupported
from istio_init.core.light import TYPE_CHECKING
from istio_init.rules.kernel.backend import Partial, Unread
from istio_init.rules.kernel.report import means

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from istio_init.rules.kernel.backend import Backend, Changes, Readings, Snapshots
    from istio_init.rules.model import Family, Snapshot

UNCHANGED = "nothing was changed"


def seen(readings: Readings) -> tuple[Snapshots, list[str]]:
    """Return what was read, with a warning for each family that may hold more than this user may see.

    Raises:
        IstioInitError: a family could not be read, so nothing may be said of it.
    """
    found: Snapshots = {}
    warnings = []
    for family, reading in readings.items():
        if isinstance(reading, Unread):
            reading.why.add_note(UNCHANGED)
            raise reading.why
        if isinstance(reading, Partial):
            warnings.append(f"there may be {family} rules of ours that were not seen: {reading.why}")
            found[family] = reading.visible
        else:
            found[family] = reading.tables
    return found, warnings


class Part:
    """The part of one backend.

    Args:
        backend: reads and writes.
        before: what it held, of each family.
        wanted: what it shall hold; nothing for a family that is not named.

    Attributes:
        changes: what is to be changed, of each family in which something is.

    Raises:
        Unsupported: a third-party rule uses a chain that would have to be removed.
    """

    def __init__(self, backend: Backend, before: Snapshots, wanted: Mapping[Family, Snapshot]) -> None:
        self.backend = backend
        self.before = before
        changes = {family: backend.difference(wanted.get(family, {}), state) for family, state in before.items()}
        self.changes: Changes = {family: made for family, made in changes.items() if made}

    @property
    def means(self) -> str:
        """The backend and variants of what is changed, such as `restore; ipv4 legacy`."""
        return means(self.backend.name, self.backend.variants(tuple(self.changes)))

    def holds(self, family: Family) -> bool:
        """Return whether anything of ours was there before."""
        return any(state.chains or state.jumps or state.inserted for state in self.before.get(family, {}).values())

    def again(self, wanted: Mapping[Family, Snapshot]) -> Part:
        """Read the same families again, and return the part that shall hold something else.

        Raises:
            IstioInitError: a family could not be read.
        """
        now, _ = seen(self.backend.read(tuple(self.before)))
        return Part(self.backend, now, wanted)

    def drop(self, families: Collection[Family]) -> None:
        """Leave families as they are."""
        self.changes = {family: made for family, made in self.changes.items() if family not in families}

    def commit(self, optional: Collection[Family] = ()) -> tuple[dict[Family, IstioInitError], dict[Family, str]]:
        """Commit the changes.

        Returns:
            the families that failed, which have not changed; and those of the optional ones that do not work here at all.
            Changes of neither are kept.

        Raises:
            NotPermitted, LockHeld, ToolFault: something failed that says nothing about what works here.
        """
        failed = self._commit()
        left_out = self.not_working({family for family in failed if family in optional})
        self.drop(left_out)
        if left_out and self.backend.all_or_nothing:
            failed = self._commit()
        failed = {family: error for family, error in failed.items() if family not in left_out}
        self.drop(failed)
        return failed, left_out

    def _commit(self) -> dict[Family, IstioInitError]:
        failed = self.backend.commit(self.changes) if self.changes else {}
        for error in failed.values():
            if isinstance(error, ToolFault):
                raise error
        return failed

    def not_working(self, families: Collection[Family]) -> dict[Family, str]:
        """Return which of some families cannot be written here at all, with the reasons."""
        tables = {family: self.changes[family][0].table for family in families}
        return self.backend.probe(tables) if tables else {}

    def undo(self) -> bool:
        """Roll back to what was there before, and return whether anything was different.

        Raises:
            IstioInitError: it could not be read, or a transaction failed.
        """
        now, _ = seen(self.backend.read(tuple(self.before)))
        changes = {family: self.backend.difference(before, now[family]) for family, before in self.before.items()}
        changes = {family: wanted for family, wanted in changes.items() if wanted}
        if changes:
            for failure in self.backend.commit(changes).values():
                raise failure
        return bool(changes)

    def states(self) -> list[str]:
        """Describe each table, of each family: whether it is as it was, or has changed, or cannot be read."""
        try:
            now, _ = seen(self.backend.read(tuple(self.before)))
            changes = {family: self.backend.difference(before, now[family]) for family, before in self.before.items()}
        except IstioInitError as error:
            return [f"{self.backend.name} cannot be compared: {error}"]
        described = []
        for family, before in self.before.items():
            changed = {change.table for change in changes[family]}
            described += [
                f"{family} {table} ({self.backend.name}) {'has changed' if table in changed else 'is as it was'}"
                for table in dict.fromkeys((*before, *now[family]))
            ]
        return described


def put_back(parts: Sequence[Part], cause: IstioInitError) -> None:
    """Roll parts back, the last step first, and note it on the error that made it necessary.

    Raises:
        Unsupported: that failed, too; the message says what each table holds now.
    """
    if len(parts) == 1 and parts[0].backend.all_or_nothing:
        cause.add_note(UNCHANGED)
        return
    try:
        undone = [part.undo() for part in parts]
    except IstioInitError as error:
        first = {part.backend: part for part in parts}  # of each backend the first step, which comes last here
        states = "; ".join(state for part in first.values() for state in part.states())
        raise Unsupported(f"{cause}; the rollback failed too: {error}; now {states}") from cause
    cause.add_note("the previous rules are in place again (rollback)" if any(undone) else UNCHANGED)
