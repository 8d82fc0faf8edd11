"""The backend that runs the iptables programs: iptables-save to read, iptables-restore to write.

Two rule sets of the kernel can be reached through them, and Debian and most images have a *variant* of the programs for
each. Rules of both apply to every packet, but neither variant sees the rules of the other. What is in nf_tables is compared
with what the kernel itself lists, since the programs omit tables with rules that they do not understand.
"""

from __future__ import annotations

from istio_init.core.errors import CommandError, IstioInitError, NotPermitted, ToolFault, Unsupported
from istio_init.core.light import TYPE_CHECKING
from istio_init.core.runner import NOT_FOUND, Command
from istio_init.rules.changes import compare
from istio_init.rules.kernel import nf_tables
from istio_init.rules.kernel.backend import Backend, Changes, Partial, Reading, Readings, Unread, Whole
from istio_init.rules.kernel.host import node_chains_in
from istio_init.rules.kernel.iptables_programs import Programs, failure, is_installed
from istio_init.rules.kernel.legacy import are_tables_known, legacy_tables
from istio_init.rules.kernel.locks import USUAL_WAITS, Waits
from istio_init.rules.kernel.rule_sets import RuleSet
from istio_init.rules.model import CHAINS_OF, Family, Snapshot, Table, Variant
from istio_init.rules.render.iptables import command_name, complete_tables, parse_save, render_changes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from istio_init.core.runner import Observer, Result
    from istio_init.rules.kernel.hidden import HiddenTables

# nf_tables before legacy: merely querying a legacy table makes the kernel load it.
RULE_SETS = (RuleSet.IPTABLES_NFT, RuleSet.LEGACY)
NAMED = {RuleSet.IPTABLES_NFT: Variant.NFT, RuleSet.LEGACY: Variant.LEGACY}
OF_NFT = "nf_tables"  # in what `iptables-save --version` prints since 1.8

# Written and removed in one transaction, so that it shows what the kernel can do and leaves no rule.
TRIAL_CHAIN = "ISTIO_INIT_TRIAL"
TRIAL_RULE = {Table.NAT: "-p tcp -j REDIRECT --to-ports 1"}

TABLES = {table.value: table for table in Table}


class RestoreBackend(Backend):
    """Reads with iptables-save and writes with iptables-restore.

    Args:
        variant: which programs to use; None detects it for each family.
        waits: how long to wait for locks and for tools.
        observe: receives each command that is run.
        rule_sets: those to read and write, if no variant says so.
    """

    name = "restore"

    def __init__(
        self,
        variant: Variant | None = None,
        waits: Waits = USUAL_WAITS,
        observe: Observer = lambda _: None,
        rule_sets: Iterable[RuleSet] = RULE_SETS,
    ) -> None:
        super().__init__(waits)
        self._programs = Programs(waits, observe, self.notices)
        self._observe = observe
        self._variant = variant
        self._variants: dict[tuple[Family, RuleSet], Variant | None] = {}  # found out when needed
        if variant is not None:
            rule_sets = [one for one, its in NAMED.items() if variant in (its, Variant.PLAIN)]
        if variant is Variant.PLAIN:
            rule_sets = [self._plain_rule_set(Family.IPV4)]
        self._order = tuple(one for one in RULE_SETS if one in rule_sets)
        self.rule_sets = frozenset(self._order)
        self._chains: dict[Family, frozenset[tuple[str, str]] | None] = {}  # in nf_tables; None if that is not permitted
        self._chosen: dict[Family, RuleSet] = {}
        self._besides: dict[RuleSet, tuple[Family, ...]] = {}  # those not chosen that have rules of ours
        self._ambiguous: set[Family] = set()  # those with third-party rules in both, and none of ours
        self._legacy: dict[Family, Snapshot] = {}
        self._hidden: HiddenTables | None = None

    def variants(self, families: tuple[Family, ...]) -> dict[Family, Variant]:
        """Return the variant that each family uses; families without rules may have none yet."""
        chosen = {family: self._chosen[family] for family in families if family in self._chosen}
        return {family: self._variant_for(family, rule_set) or NAMED[rule_set] for family, rule_set in chosen.items()}

    def read(self, families: tuple[Family, ...]) -> Readings:
        """Read our rules, and choose for each family the rule set that already has rules: ours, or else third-party ones."""
        self._besides.clear()
        self._ambiguous.clear()
        if self._hidden is not None:
            self._hidden.clear()
        self._chains = {family: _kernel_chains(family) for family in families}
        asked = [(f, one) for f in families for one in self._order if self._may_hold(f, one) and self._variant_for(f, one)]
        looks: dict[tuple[Family, RuleSet], Reading] = {
            (f, one): self._read_without(f, one) for f in families for one in self._order if (f, one) not in asked
        }
        # Where only root can tell whether legacy tables exist, failing to read them is not an error.
        unsure = frozenset(
            self._name(f, one, "save") for f, one in asked if one is RuleSet.LEGACY and not are_tables_known(f)
        )
        results = self._programs.run([Command((self._name(f, one, "save"),)) for f, one in asked], unsure)
        for (family, one), result in zip(asked, results, strict=True):
            self.node_chains |= node_chains_in(result.stdout)
            try:
                looks[family, one] = self._read_legacy(result) if one is RuleSet.LEGACY else self._read_nft(family, result)
            except Unsupported as error:
                looks[family, one] = Unread(error)
        return {family: self._settle(family, {one: looks[family, one] for one in self._order}) for family in families}

    def besides(self) -> Iterator[tuple[Backend, tuple[Family, ...]]]:
        """Yield backends for the rule sets that have rules of ours but were not chosen."""
        from istio_init.rules.kernel.registry import open_rule_set

        for rule_set, where in self._besides.items():
            yield open_rule_set(rule_set, self.waits, self._observe), where

    def rule_set(self, family: Family) -> RuleSet:
        """Return the rule set that was chosen for a family."""
        return self._chosen.get(family, self._order[0])

    def beside(self, family: Family) -> Snapshot:
        """Return what is in legacy tables, if the family's rules are in nf_tables."""
        return self._legacy.get(family, {}) if self._is_nft(family) else {}

    def probe(self, tables: Mapping[Family, Table]) -> dict[Family, str]:
        """Write and remove a rule; a family works if one of its rule sets accepts the rule."""
        scripts = {family: _trial(table) for family, table in tables.items()}
        return {family: str(error) for family, error in self._load(scripts).items()}

    def commit(self, changes: Changes) -> dict[Family, IstioInitError]:
        """Load one restore script per family, both families in parallel; then remove what stands in hidden tables.

        There is no separate test of a rule set: only the script itself shows whether the kernel has every module it needs.
        """
        for family in self._ambiguous.intersection(changes):
            self.notices.append(
                f"both iptables-nft and iptables-legacy have third-party {family} rules; ours are in iptables-nft "
                "(--iptables-variant chooses)"
            )
        if self._hidden is None:
            return self._load({family: render_changes(wanted) for family, wanted in changes.items()})
        written, removed = self._hidden.split({f: wanted for f, wanted in changes.items() if self._is_nft(f)})
        written |= {family: wanted for family, wanted in changes.items() if not self._is_nft(family)}
        failed = self._load({family: render_changes(wanted) for family, wanted in written.items() if wanted})
        return failed | self._hidden.commit({f: wanted for f, wanted in removed.items() if wanted and f not in failed})

    def _is_nft(self, family: Family) -> bool:
        return self.rule_set(family) is RuleSet.IPTABLES_NFT

    def _load(self, scripts: dict[Family, str]) -> dict[Family, IstioInitError]:
        """Load each family's script into its rule set, or try one after another until one accepts it."""
        failed: dict[Family, IstioInitError] = {}
        waiting = dict(scripts)
        for rule_set in self._order:
            trying = [f for f in waiting if self._chosen.get(f, rule_set) is rule_set]
            if not trying:
                continue
            commands = [self._restore_command(family, rule_set, waiting[family]) for family in trying]
            for family, result in zip(trying, self._programs.run(commands), strict=True):
                if result.status == 0:
                    self._chosen[family] = rule_set
                    self._tell_if_passed_over(family, rule_set, failed.get(family))
                    del waiting[family]
                    continue
                if family not in self._chosen:
                    self._remove_part(family, rule_set)
                _gather(failed, family, failure(result))
                if result.is_fault:
                    del waiting[family]
        return {family: error for family, error in failed.items() if family in waiting or isinstance(error, ToolFault)}

    def _tell_if_passed_over(self, family: Family, used: RuleSet, error: IstioInitError | None) -> None:
        if isinstance(error, CommandError) and error.stderr != NOT_FOUND:
            self.notices.append(f"{family} rules are in {used}, because {self._order[0]} does not work here: {error}")

    def _remove_part(self, family: Family, rule_set: RuleSet) -> None:
        """Remove what an abandoned rule set had accepted; it held nothing of ours before."""
        (saved,) = self._programs.run([Command((self._name(family, rule_set, "save"),))])
        undo = compare({}, parse_save(saved.stdout))
        if undo:
            self._programs.run([self._restore_command(family, rule_set, render_changes(undo))])

    def _may_hold(self, family: Family, rule_set: RuleSet) -> bool:
        """Return whether a rule set has tables at all, without making any."""
        if rule_set is RuleSet.LEGACY:
            return bool(legacy_tables(family))
        chains = self._chains[family]
        return chains is None or any(table in TABLES for table, _ in chains)

    def _read_without(self, family: Family, rule_set: RuleSet) -> Reading:
        """Read a rule set that has nothing, or whose programs are not installed."""
        if not self._may_hold(family, rule_set):
            return Whole({})
        if rule_set is RuleSet.IPTABLES_NFT and self._chains[family] is not None:
            return Whole(self._hidden_tables().read(family, tuple(Table), ""))
        (result,) = self._programs.run([Command((command_name(family, NAMED[rule_set], "save"),))])
        return Unread(failure(result))

    def _read_legacy(self, result: Result) -> Reading:
        if result.status == 0:
            return Whole(parse_save(result.stdout))
        error = failure(result)
        return Partial({}, error) if isinstance(error, NotPermitted) else Unread(error)

    def _read_nft(self, family: Family, result: Result) -> Reading:
        """Read what a program printed, and by other means what it left out."""
        chains = self._chains[family]
        if result.is_fault or (result.status != 0 and chains is None):
            return Unread(failure(result))
        printed = complete_tables(result.stdout)
        if chains is None:  # then the program's own word has to do
            left_out = [line.strip("# ") for line in result.stdout.splitlines() if line.startswith("# Table")]
            return Unread(_incompatible(family, left_out)) if left_out else Whole(parse_save(result.stdout))
        tables = {name: state for name, state in parse_save(result.stdout).items() if name in printed}
        missing = {TABLES[name] for name, chain in chains if name in TABLES and not _shows(tables, TABLES[name], chain)}
        if missing:
            tables |= self._hidden_tables().read(family, missing, self._name(family, RuleSet.IPTABLES_NFT, ""))
        return Whole(tables)

    def _hidden_tables(self) -> HiddenTables:
        if self._hidden is None:
            from istio_init.rules.kernel.hidden import HiddenTables

            self._hidden = HiddenTables(self._programs)
        return self._hidden

    def _settle(self, family: Family, readings: dict[RuleSet, Reading]) -> Reading:
        tables: dict[RuleSet, Snapshot] = {}
        hidden = [look.why for look in readings.values() if isinstance(look, Partial)]
        for one, look in readings.items():
            if isinstance(look, Unread):
                return look
            tables[one] = look.tables if isinstance(look, Whole) else look.visible
        if len(hidden) == len(readings):
            return Unread(hidden[0])  # nothing was seen at all
        self._legacy[family] = tables.get(RuleSet.LEGACY, {})
        ours = [one for one, found in tables.items() if _has_ours(found)]
        occupied = ours or [one for one, found in tables.items() if _has_foreign(found)]
        for rule_set in ours[1:]:
            self._besides[rule_set] = (*self._besides.get(rule_set, ()), family)
        if len(occupied) > 1 and not ours:
            self._ambiguous.add(family)
        if occupied:
            self._chosen[family] = occupied[0]
        seen = tables[occupied[0] if occupied else self._order[0]]  # which base chains there are counts, too
        return Partial(seen, hidden[0]) if hidden else Whole(seen)

    def _variant_for(self, family: Family, rule_set: RuleSet) -> Variant | None:
        """Return the variant of the programs that reaches a rule set; None if there is none on the PATH."""
        if self._variant is not None:
            return self._variant
        if (family, rule_set) not in self._variants:
            installed = [v for v in NAMED.values() if is_installed(command_name(family, v, "save"))]
            found = NAMED[rule_set] if NAMED[rule_set] in installed else None
            # The plain name is an alias of one of the two: it counts only where it is the only one.
            if not installed and is_installed(command_name(family, Variant.PLAIN, "save")):
                found = Variant.PLAIN if self._plain_rule_set(family) is rule_set else None
            self._variants[family, rule_set] = found
        return self._variants[family, rule_set]

    def _plain_rule_set(self, family: Family) -> RuleSet:
        """Return the rule set that the programs without a variant in their names reach."""
        (result,) = self._programs.run([Command((command_name(family, Variant.PLAIN, "save"), "--version"))])
        return RuleSet.IPTABLES_NFT if OF_NFT in result.stdout else RuleSet.LEGACY

    def _name(self, family: Family, rule_set: RuleSet, verb: str) -> str:
        return command_name(family, self._variant_for(family, rule_set) or NAMED[rule_set], verb)

    def _restore_command(self, family: Family, rule_set: RuleSet, script: str) -> Command:
        return self._programs.restore_command(self._name(family, rule_set, "restore"), script)


def _kernel_chains(family: Family) -> frozenset[tuple[str, str]] | None:
    """List the chains in nf_tables; None if only programs with capabilities of their own may."""
    try:
        return nf_tables.chains(family)
    except NotPermitted:
        return None


def _incompatible(family: Family, lines: list[str]) -> Unsupported:
    message = f"{family} rules cannot be read: iptables-nft-save said: {'; '.join(lines)}"
    return Unsupported(f"{message}; run this with NET_ADMIN in this process, which can then read the tables itself")


def _gather(failed: dict[Family, IstioInitError], family: Family, error: IstioInitError) -> None:
    """Keep the first failure of a family, with the later ones as notes; a fault is what counts."""
    first = failed.setdefault(family, error)
    if isinstance(error, ToolFault):
        failed[family] = error
    elif first is not error:
        first.add_note(f"also: {error}")


def _trial(table: Table) -> str:
    chain, rule = TRIAL_CHAIN, TRIAL_RULE.get(table, "-j RETURN")
    return f"*{table}\n:{chain} - [0:0]\n-A {chain} {rule}\n-F {chain}\n-X {chain}\nCOMMIT\n"


def _shows(tables: Snapshot, table: Table, chain: str) -> bool:
    """Return whether what was printed of a table has a chain, if that is one of ours."""
    return table in tables and (chain not in CHAINS_OF[table] or chain in tables[table].chains)


def _has_ours(tables: Snapshot) -> bool:
    return any(state.chains or state.jumps or state.inserted for state in tables.values())


def _has_foreign(tables: Snapshot) -> bool:
    return any(state.foreign for state in tables.values())
