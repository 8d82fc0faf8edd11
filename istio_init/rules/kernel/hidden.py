"""Tables of iptables in nf_tables that iptables-save does not print, because of third-party native rules in them.

iptables-save prints such a table as incompatible, or fails. What is in it is known all the same: iptables prints those
chains in which it understands every rule (`iptables -S CHAIN`), and the kernel lists the rest. iptables-restore still adds
rules and replaces chains in such a table; but it removes a rule by comparing it with every other rule of its chain, and
fails at the first one that it does not understand. So rules are removed by their handles.
"""

from __future__ import annotations

from istio_init.core.light import TYPE_CHECKING
from istio_init.core.runner import Command
from istio_init.rules.changes import TableChange
from istio_init.rules.kernel import nf_tables
from istio_init.rules.kernel.native import NativeBackend
from istio_init.rules.model import BUILTIN_CHAINS, CHAINS_OF, Family, OpaqueRule, Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from istio_init.core.errors import IstioInitError
    from istio_init.rules.kernel.backend import Changes
    from istio_init.rules.kernel.iptables_programs import Programs
    from istio_init.rules.kernel.native import Texts
    from istio_init.rules.model import KernelRule, Snapshot


class HiddenTables:
    """Reads and changes hidden tables.

    Args:
        programs: runs those of iptables.
    """

    def __init__(self, programs: Programs) -> None:
        self._programs = programs
        self._native = NativeBackend()
        self._tables: dict[Family, frozenset[Table]] = {}

    def read(self, family: Family, tables: Iterable[Table], program: str) -> Snapshot:
        """Read some tables.

        Args:
            family: whose tables.
            tables: those that are hidden.
            program: `iptables-nft`, by the name it has here; an empty text if it is not installed.

        Raises:
            NotPermitted, Unsupported: the kernel refused, or its answer could not be read.
        """
        self._tables[family] = frozenset(tables)
        return self._native.read_tables(family, self._tables[family], self._print(family, program) if program else {})

    def _print(self, family: Family, program: str) -> dict[Table, Texts]:
        """Let iptables print the chains that may hold rules of ours, as far as it can."""
        asked = [
            (Table(table), chain)
            for table, chain in sorted(nf_tables.chains(family))
            if table in self._tables[family] and chain in CHAINS_OF[Table(table)] | BUILTIN_CHAINS
        ]
        texts: dict[Table, Texts] = {}
        results = self._programs.run([Command((program, "-t", table, "-S", chain)) for table, chain in asked])
        for (table, chain), result in zip(asked, results, strict=True):
            if result.status == 0:
                lines = (line.partition(f"-A {chain}") for line in result.stdout.splitlines())
                texts.setdefault(table, {})[chain] = [text.strip() for before, sign, text in lines if sign and not before]
        return texts

    def clear(self) -> None:
        """Forget which tables are hidden."""
        self._tables.clear()

    def split(self, changes: Changes) -> tuple[Changes, Changes]:
        """Return what iptables-restore can do of the changes, and what has to be done by handles afterwards."""
        parts = {family: [self._split(family, change) for change in wanted] for family, wanted in changes.items()}
        return (
            {family: [written for written, _ in pairs if _is_any(written)] for family, pairs in parts.items()},
            {family: [removed for _, removed in pairs if _is_any(removed)] for family, pairs in parts.items()},
        )

    def _split(self, family: Family, change: TableChange) -> tuple[TableChange, TableChange]:
        if change.table not in self._tables.get(family, ()):
            return change, TableChange(change.table, {})
        native = {name: rules for name, rules in change.chains.items() if any(map(_is_native, rules))}
        written = TableChange(
            change.table,
            {name: rules for name, rules in change.chains.items() if name not in native},
            added_jumps=_jumps(change.added_jumps, is_native=False),
            inserted_jumps=_jumps(change.inserted_jumps, is_native=False),
        )
        removed = TableChange(
            change.table,
            native,
            change.dropped,
            change.removed_jumps,
            _jumps(change.added_jumps, is_native=True),
            _jumps(change.inserted_jumps, is_native=True),
        )
        return written, removed

    def commit(self, changes: Changes) -> dict[Family, IstioInitError]:
        """Remove rules by their handles, and put back those that were read natively."""
        return self._native.commit(changes) if changes else {}


def _is_native(rule: KernelRule) -> bool:
    return isinstance(rule, OpaqueRule) and rule.native is not None


def _jumps(jumps: Sequence[tuple[str, KernelRule]], *, is_native: bool) -> tuple[tuple[str, KernelRule], ...]:
    return tuple((chain, rule) for chain, rule in jumps if _is_native(rule) is is_native)


def _is_any(change: TableChange) -> bool:
    return any(change[1:])
