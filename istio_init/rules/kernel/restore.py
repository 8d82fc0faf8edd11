"""The backend that runs the iptables programs: iptables-save to read, iptables-restore to write.

It also detects which *variant* to use. Debian and most images ship two sets of binaries, for two kernel interfaces. The
rules of both apply to each packet, but neither set of binaries sees the other's rules.
"""

from __future__ import annotations

from istio_init.core.errors import CommandError, IstioInitError, LockHeld, NotPermitted
from istio_init.core.light import TYPE_CHECKING
from istio_init.core.runner import NOT_FOUND, Command, Result, run_all
from istio_init.rules.changes import compare
from istio_init.rules.kernel.backend import Backend, Changes, Snapshots
from istio_init.rules.kernel.legacy import (
    LOCK_FILE_REMEDY,
    XTABLES_LOCK_VARIABLE,
    are_tables_known,
    is_lock_chosen,
    legacy_tables,
    lock_notice,
    lock_path,
    own_lock_file,
)
from istio_init.rules.kernel.locks import LOCK_WAIT
from istio_init.rules.kernel.modules import missing_part
from istio_init.rules.kernel.remedies import OTHER_REFUSAL, missing_capability
from istio_init.rules.kernel.rule_sets import OF_VARIANT
from istio_init.rules.model import Family, Snapshot, Table, Variant
from istio_init.rules.render.iptables import command_name, parse_save, render_changes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from istio_init.core.runner import Observer

PROGRAM_TIMEOUT = 30.0  # seconds per program, plus the wait for the lock

# nft before legacy: merely querying a legacy table makes the kernel load it. The plain name comes last.
CANDIDATES = (Variant.NFT, Variant.LEGACY, Variant.PLAIN)

# Written and removed in one transaction, so that it shows what the kernel can do and leaves no rule.
TRIAL_CHAIN = "ISTIO_INIT_TRIAL"
TRIAL_RULE = {Table.NAT: "-p tcp -j REDIRECT --to-ports 1"}

LOCK_FILE_MESSAGE = "can't open lock file"
LOCK_MESSAGE = "holding the xtables lock"
REFUSED_MESSAGES = ("Permission denied", "Operation not permitted", "you must be root")
NO_NAMES_MESSAGE = "Failed to list table names"
# Legacy prints only this, whether the kernel lacks the table or refused the raw socket.
NO_TABLE_MESSAGE = "unable to initialize table"


class RestoreBackend(Backend):
    """Reads with iptables-save and writes with iptables-restore.

    Args:
        variant: which binaries to use; None detects it for each family.
        lock_wait: seconds to wait for another program that holds a lock.
        observe: receives each command that is run.
    """

    name = "restore"

    def __init__(
        self,
        variant: Variant | None = None,
        lock_wait: int = LOCK_WAIT,
        observe: Observer = lambda _: None,
    ) -> None:
        super().__init__(lock_wait)
        self._candidates = CANDIDATES if variant is None else (variant,)
        self.rule_sets = frozenset(rule_set for one in self._candidates for rule_set in OF_VARIANT[one])
        self._chosen: dict[Family, Variant] = {}
        self._readable: set[Family] = set()
        self._unreadable: dict[tuple[Family, Variant], IstioInitError] = {}
        self._besides: dict[Variant, tuple[Family, ...]] = {}  # variants not chosen that have rules of ours
        self._lock_path = ""  # of a private lock file, if the default one cannot be opened
        self._observe = observe

    def variants(self, families: tuple[Family, ...]) -> dict[Family, Variant]:
        """Return the variant that each family uses; families without rules may have none yet."""
        return {family: self._chosen[family] for family in families if family in self._chosen}

    def read(self, families: tuple[Family, ...]) -> Snapshots:
        """Read our rules, and choose for each family the variant that already has rules: ours, or else third-party ones."""
        found = self._save(families)
        self._besides.clear()
        return {family: self._settle(family, found[family]) for family in families}

    def besides(self) -> Iterator[tuple[Backend, tuple[Family, ...]]]:
        """Yield backends for the variants that have rules of ours but were not chosen."""
        for variant, where in self._besides.items():
            yield RestoreBackend(variant, self.lock_wait, self._observe), where

    def is_unusable(self) -> bool:
        """Return whether no iptables is installed; one that exists but fails may hide rules of ours."""
        are_missing = all(isinstance(e, CommandError) and e.stderr == NOT_FOUND for e in self._unreadable.values())
        return not self._chosen and are_missing

    def probe(self, tables: Mapping[Family, Table]) -> dict[Family, str]:
        """Write and remove a rule; a family works if one of its remaining variants accepts the rule."""
        scripts = {family: _trial(table) for family, table in tables.items()}
        return {family: str(error) for family, error in self._load(scripts).items()}

    def commit(self, changes: Changes) -> dict[Family, IstioInitError]:
        """Load one restore script per family, both families in parallel.

        There is no separate test of a variant: only the script itself shows whether the kernel has every module it needs.
        """
        return self._load({family: render_changes(wanted) for family, wanted in changes.items()})

    def _load(self, scripts: dict[Family, str]) -> dict[Family, IstioInitError]:
        """Load each family's script with its variant; if none is chosen, try the variants until one accepts it."""
        failed: dict[Family, IstioInitError] = {}
        waiting = dict(scripts)
        for variant in self._candidates:
            trying = [
                f for f in waiting if self._chosen.get(f, variant) is variant and self._is_readable(f, variant, failed)
            ]
            if not trying:
                continue
            results = self._run([self._restore_command(f, variant, waiting[f]) for f in trying])
            for family, result in zip(trying, results, strict=True):
                if result.status == 0:
                    self._chosen[family] = variant
                    del waiting[family]
                    continue
                if family not in self._chosen:
                    self._remove_part(family, variant)
                _gather(failed, family, _failure(result))
        return {family: failed[family] for family in waiting}

    def _is_readable(self, family: Family, variant: Variant, failed: dict[Family, IstioInitError]) -> bool:
        """Return whether the family's rules were read; if not, record a failure: unread rules must not be overwritten."""
        error = self._unreadable.get((family, variant))
        if error is not None:
            _gather(failed, family, error)
        return error is None

    def _remove_part(self, family: Family, variant: Variant) -> None:
        """Remove what a rejected variant had accepted before it failed; it held no rules of ours before."""
        (saved,) = self._run([Command((command_name(family, variant, "save"),))])
        undo = compare({}, parse_save(saved.stdout))
        if undo:
            self._run([self._restore_command(family, variant, render_changes(undo))])

    def unread(self) -> dict[Family, IstioInitError]:
        """Return the families that no variant could read, or whose legacy tables could not be read."""
        errors: dict[Family, IstioInitError] = {}
        for (family, variant), error in self._unreadable.items():
            if variant is Variant.LEGACY or family not in self._readable:
                errors.setdefault(family, error)
        return errors

    def seen_in_part(self) -> frozenset[Family]:
        """Return the families that were read, except for legacy tables that only root may read."""
        refused = (family for (family, _), error in self._unreadable.items() if isinstance(error, NotPermitted))
        return frozenset(self._readable.intersection(refused))

    def _save(self, families: tuple[Family, ...]) -> dict[Family, dict[Variant, Snapshot]]:
        """Read each family through each variant that may hold its rules."""
        found: dict[Family, dict[Variant, Snapshot]] = {family: {} for family in families}
        self._unreadable.clear()
        self._save_through(families, [v for v in self._candidates if v is not Variant.PLAIN], found)
        # The plain name is an alias of one of the two, so it is used only if neither is installed.
        if Variant.PLAIN in self._candidates:
            self._save_through(tuple(family for family in families if not found[family]), [Variant.PLAIN], found)
        self._readable = {family for family in families if found[family]}
        return found

    def _save_through(
        self,
        families: tuple[Family, ...],
        variants: list[Variant],
        found: dict[Family, dict[Variant, Snapshot]],
    ) -> None:
        asked = [(f, v) for f in families for v in variants if v is not Variant.LEGACY or legacy_tables(f)]
        # If only root can tell whether legacy tables exist at all, being refused to read them is not a failure.
        unsure = frozenset(command_name(f, v, "save") for f, v in asked if v is Variant.LEGACY and not are_tables_known(f))
        results = self._run([Command((command_name(f, v, "save"),)) for f, v in asked], unsure)
        for (family, variant), result in zip(asked, results, strict=True):
            if result.status == 0:
                found[family][variant] = parse_save(result.stdout)
            else:
                self._unreadable[family, variant] = _failure(result)

    def _settle(self, family: Family, found: dict[Variant, Snapshot]) -> Snapshot:
        ours = [variant for variant, tables in found.items() if _has_ours(tables)]
        occupied = ours or [variant for variant, tables in found.items() if _has_foreign(tables)]
        for variant in ours[1:]:
            self._besides[variant] = (*self._besides.get(variant, ()), family)
        if len(occupied) > 1 and not ours:
            message = (
                f"both iptables variants have rules for {family} in this network namespace; "
                "choose one with --iptables-variant legacy or --iptables-variant nft"
            )
            raise IstioInitError(message)
        if occupied:
            self._chosen[family] = occupied[0]
        return found[occupied[0]] if occupied else {}

    def _restore_command(self, family: Family, variant: Variant, script: str) -> Command:
        wait = f"{max(1, self.lock_wait)}"  # 0 would wait indefinitely
        return Command((command_name(family, variant, "restore"), "--noflush", "-w", wait), script)

    def _run(self, commands: list[Command], unsure: frozenset[str] = frozenset()) -> list[Result]:
        """Run commands; raise an error that no other variant could avoid, except of the programs in `unsure`."""
        results = self._run_with_lock_file(commands)
        for result in results:
            error = _failure(result) if result.status != 0 and result.argv[0] not in unsure else None
            if isinstance(error, (LockHeld, NotPermitted)):
                raise error
        return results

    def _run_with_lock_file(self, commands: list[Command]) -> list[Result]:
        """Run commands; rerun those that could not open their lock file, with a private lock file."""
        given = [self._with_own_lock(command) if self._lock_path else command for command in commands]
        results = run_all(given, self.lock_wait + PROGRAM_TIMEOUT, self._observe)
        failed = [number for number, result in enumerate(results) if LOCK_FILE_MESSAGE in result.stderr]
        if failed and not (self._lock_path or is_lock_chosen()):
            self._lock_path = lock_path(own_lock_file())
            reason = results[failed[0]].stderr.rpartition(": ")[2]
            self.notices.append(lock_notice(reason, self._lock_path))
            again = [self._with_own_lock(commands[number]) for number in failed]
            for number, result in zip(failed, run_all(again, self.lock_wait + PROGRAM_TIMEOUT, self._observe), strict=True):
                results[number] = result
        return results

    def _with_own_lock(self, command: Command) -> Command:
        return command._replace(environment=((XTABLES_LOCK_VARIABLE, self._lock_path),))


def _failure(result: Result) -> IstioInitError:
    """Explain a failed command and how to fix it."""
    if LOCK_MESSAGE in result.stderr:
        message = f"another program holds the xtables lock: `{' '.join(result.argv)}` said: {result.stderr}"
        return LockHeld(f"{message}; wait for it to end and run this again, or wait longer with --lock-wait SECONDS")
    program = result.argv[0]
    # nf_tables is configured by netlink, for which NET_ADMIN is enough.
    lacking = missing_capability(program, needs_raw="nft" not in program)
    refused = any(words in result.stderr for words in REFUSED_MESSAGES) or (lacking and NO_TABLE_MESSAGE in result.stderr)
    if refused and LOCK_FILE_MESSAGE not in result.stderr:
        remedy = lacking or OTHER_REFUSAL
        if NO_NAMES_MESSAGE in result.stderr:
            remedy = "only root may list legacy tables: run as root (runAsUser: 0), or use --iptables-variant nft"
        return NotPermitted(f"`{' '.join(result.argv)}` was refused: {result.stderr}; {remedy}")
    family = Family.IPV6 if program.startswith("ip6") else Family.IPV4
    if LOCK_FILE_MESSAGE in result.stderr:
        remedy = LOCK_FILE_REMEDY
    elif result.missing:
        remedy = "install Debian's package `iptables`"
    elif result.status is None:
        remedy = "run this again; -v logs the input of the program"
    elif not (remedy := missing_part(result.stderr, result.stdin, family, legacy="legacy" in program)):
        remedy = "the kernel may lack a module for it (see `dmesg`); -v logs the input of the program"
    return CommandError(result.argv, result.status, result.stderr, remedy)


def _gather(failed: dict[Family, IstioInitError], family: Family, error: IstioInitError) -> None:
    """Keep the first failure of a family, with the later ones as notes."""
    if family in failed:
        failed[family].add_note(f"also: {error}")
    else:
        failed[family] = error


def _trial(table: Table) -> str:
    chain, rule = TRIAL_CHAIN, TRIAL_RULE.get(table, "-j RETURN")
    return f"*{table}\n:{chain} - [0:0]\n-A {chain} {rule}\n-F {chain}\n-X {chain}\nCOMMIT\n"


def _has_ours(tables: Snapshot) -> bool:
    return any(state.chains for state in tables.values())


def _has_foreign(tables: Snapshot) -> bool:
    return any(state.foreign for state in tables.values())
