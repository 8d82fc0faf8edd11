"""The native nftables backend: it reads and writes with nft, and does not need iptables.

One transaction changes the tables `istio-init` of both families (see `istio_init.rules.render.nft`), so a change is atomic;
one between REDIRECT and TPROXY takes two, so that no connection escapes in between.

The transaction is text, not libnftables' JSON: 10,000 non-adjacent destinations load in 0.11 s as text and in 0.12 s as
JSON (nft 1.0.6, Linux 6.18), which is three times as long and hard to read in a dry run. Listings are read as JSON,
because it has a schema, while text has wrapped lines.
"""

from __future__ import annotations

from istio_init.core.errors import CommandError, IstioInitError, NotPermitted, ToolFault, Unsupported
from istio_init.core.light import TYPE_CHECKING
from istio_init.core.runner import Command, Result, run_all
from istio_init.rules.changes import TableChange, compare
from istio_init.rules.kernel.backend import Backend, Changes, Readings, Unread, Whole
from istio_init.rules.kernel.locks import USUAL_WAITS, Waits
from istio_init.rules.kernel.modules import missing_of_nft
from istio_init.rules.kernel.remedies import remedy_for_refusal
from istio_init.rules.kernel.rule_sets import RuleSet
from istio_init.rules.model import NFT_TABLE, Family, Match, MatchKind, Rule, Snapshot, Table, Target, TargetKind, Variant
from istio_init.rules.render.nft import FAMILIES, canonical_tables, render_gains, render_tables

if TYPE_CHECKING:
    from collections.abc import Mapping

    from istio_init.core.runner import Observer

LOAD = ("nft", "-f", "-")
TRY = ("nft", "-c", "-f", "-")  # the kernel performs the transaction, then aborts it
TRIAL = {
    Table.NAT: Rule((Match(MatchKind.PROTOCOL, "tcp"),), Target(TargetKind.REDIRECT, port=1)),
}
RETURN = Rule((), Target(TargetKind.RETURN))

NO_TABLE_MESSAGE = "No such file or directory"
REFUSED_MESSAGE = "Operation not permitted"


class NftBackend(Backend):
    """Reads and writes through nft.

    Args:
        waits: how long to wait for locks and for tools.
        observe: receives each command that is run.
    """

    name = "nft"
    rule_sets = frozenset({RuleSet.NATIVE})
    all_or_nothing = True

    def __init__(self, waits: Waits = USUAL_WAITS, observe: Observer = lambda _: None) -> None:
        super().__init__(waits)
        self._observe = observe
        self._absent: set[Family] = set()  # families that had no table of ours at the last read
        self._standing: dict[Family, dict[str, str]] = {}  # the chains of the others: see `Listing.chains`

    def variants(self, families: tuple[Family, ...]) -> dict[Family, Variant]:
        """Return nf_tables, the only kernel interface that nft uses."""
        return dict.fromkeys(families, Variant.NFT)

    def read(self, families: tuple[Family, ...]) -> Readings:
        """Read our tables, both families in parallel; a missing table reads as empty."""
        found: Readings = {}
        self._absent.clear()
        self._standing.clear()
        results = self._run([Command(("nft", "-j", "list", "table", FAMILIES[family], NFT_TABLE)) for family in families])
        for family, result in zip(families, results, strict=True):
            if result.status == 0:
                from istio_init.rules.render.nft_listing import parse_listing

                try:
                    tables, self._standing[family] = parse_listing(result.stdout)
                except Unsupported as error:
                    found[family] = Unread(error)
                else:
                    found[family] = Whole(tables)
            elif NO_TABLE_MESSAGE in result.stderr:
                found[family] = Whole({})
                self._absent.add(family)
            else:
                found[family] = Unread(_failure(result))
        return found

    def probe(self, tables: Mapping[Family, Table]) -> dict[Family, str]:
        """Let the kernel check a transaction with one rule for each family."""
        rules = {family: (("OUTPUT", TRIAL.get(table, RETURN)),) for family, table in tables.items()}
        changes = {family: [TableChange(table, {}, added_jumps=rules[family])] for family, table in tables.items()}
        results = self._run([Command(TRY, render_tables({family: changes[family]})) for family in tables])
        checked = zip(tables, results, strict=True)
        return {family: str(_failure(result)) for family, result in checked if result.status != 0}

    def commit(self, changes: Changes) -> dict[Family, IstioInitError]:
        """Replace the tables of all these families in one transaction, or in two if something must come first."""
        gains = render_gains(changes, self._standing)
        if gains:
            if failed := self._load(gains, changes):
                return failed
            self.all_or_nothing = False
            self.read(tuple(changes))
        return self._load(render_tables(changes, self._absent, self._standing), changes)

    def _load(self, script: str, changes: Changes) -> dict[Family, IstioInitError]:
        (result,) = self._run([Command(LOAD, script)])
        return {} if result.status == 0 else dict.fromkeys(changes, _failure(result))

    def difference(self, wanted: Snapshot, current: Snapshot) -> list[TableChange]:
        """Return the changes that write the whole table if anything differs, because `commit` replaces tables."""
        if wanted and current and not compare(canonical_tables(wanted), current):
            return []
        return compare(wanted, {} if wanted else current)

    def _run(self, commands: list[Command]) -> list[Result]:
        results = run_all(commands, self.waits.tool, self._observe)
        for result in results:
            if result.status != 0 and REFUSED_MESSAGE in result.stderr:
                raise _failure(result)
        return results


def _failure(result: Result) -> IstioInitError:
    """Explain a failed command and how to fix it."""
    # After an error, nft prints the offending line, which can be as long as a list of destinations.
    message = "; ".join(line for line in result.stderr.splitlines() if "Error: " in line) or result.stderr
    if REFUSED_MESSAGE in result.stderr:
        remedy = remedy_for_refusal("nft")
        return NotPermitted(f"`{' '.join(result.argv)}` was refused: {message}; {remedy}")
    if result.missing:
        remedy = "install Debian's package `nftables`, or use --backend restore"
    elif result.is_fault:
        remedy = "run this again; -v logs the input of nft"
    elif not (remedy := missing_of_nft(result.stderr, result.stdin)):
        remedy = "the kernel may lack nf_tables or a part of it (see `dmesg`); -v logs the input of nft"
    kind = ToolFault if result.is_fault else CommandError
    return kind(result.argv, result.status, message, remedy)
