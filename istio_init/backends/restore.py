"""The backend that speaks to the iptables programs: iptables-save to read, iptables-restore to write.

It also finds out which *variant* of them is meant. Debian and most images carry two sets of binaries, for two kernel
interfaces whose rules both apply to each packet but cannot see each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.backends.base import LOCK_WAIT, Backend, Changes, Snapshots
from istio_init.environment import CAP_NET_ADMIN, CAP_NET_RAW, has_capability
from istio_init.errors import CommandError, IstioInitError, LockHeld, NotPermitted
from istio_init.model import Family, Snapshot, Table, Variant
from istio_init.render.iptables import command_name, parse_save, render_changes
from istio_init.runner import Command, Result, run_all

if TYPE_CHECKING:
    from collections.abc import Mapping

    from istio_init.runner import Observer

PATIENCE = 30.0  # seconds for one program, on top of the wait for the lock

# nft before legacy: merely asking legacy for a table makes the kernel load it. The unadorned name comes last.
CANDIDATES = (Variant.NFT, Variant.LEGACY, Variant.PLAIN)

# The tables that legacy xtables has made in this network namespace, one a line (net/netfilter/x_tables.c).
LEGACY_TABLES = {Family.IPV4: "/proc/net/ip_tables_names", Family.IPV6: "/proc/net/ip6_tables_names"}

# Written and taken back in one transaction, so that it shows what the kernel can do and leaves no rule.
TRIAL_CHAIN = "ISTIO_INIT_TRIAL"
TRIAL_RULE = {Table.NAT: "-p tcp -j REDIRECT --to-ports 1"}

LOCK_MESSAGE = "holding the xtables lock"
REFUSED_MESSAGES = ("Permission denied", "Operation not permitted", "you must be root")


class RestoreBackend(Backend):
    """Reads and writes through iptables-save and iptables-restore.

    Args:
        variant: which binaries to use; None finds out for each family.
        lock_wait: seconds to wait for another program that holds a lock.
        observe: is told each command that is run.
    """

    name = "restore"

    def __init__(
        self,
        variant: Variant | None = None,
        lock_wait: float = LOCK_WAIT,
        observe: Observer = lambda _: None,
    ) -> None:
        super().__init__(lock_wait)
        self._candidates = CANDIDATES if variant is None else (variant,)
        self._chosen: dict[Family, Variant] = {}
        self._unusable: dict[tuple[Family, Variant], str] = {}
        self._observe = observe

    def variants(self, families: tuple[Family, ...]) -> dict[Family, Variant]:
        """Tell which variant each family uses; a family for which none was needed is left out."""
        return {family: self._chosen[family] for family in families if family in self._chosen}

    def read(self, families: tuple[Family, ...]) -> Snapshots:
        """Read our rules, and settle for each family on the variant that already has rules, if one has."""
        found = self._save(families)
        return {family: self._settle(family, found[family]) for family in families}

    def probe(self, tables: Mapping[Family, Table]) -> dict[Family, str]:
        """Write and take back a rule with each variant that is left, until one works for each family."""
        unsettled = dict(tables)
        for variant in self._candidates:
            trying = [f for f in unsettled if self._chosen.get(f, variant) is variant and not self._reason(f, variant)]
            commands = [self._restore_command(f, variant, _trial(unsettled[f])) for f in trying]
            for family, result in zip(trying, self._run(commands), strict=True):
                if result.status == 0:
                    self._chosen[family] = variant
                    del unsettled[family]
                else:
                    self._unusable[family, variant] = str(_failure(result))
        return {family: self._reasons(family) for family in unsettled}

    def commit(self, changes: Changes) -> None:
        """Load one restore script a family, the families side by side."""
        commands = [self._restore_command(f, self._chosen[f], render_changes(wanted)) for f, wanted in changes.items()]
        failed = [_failure(result) for result in self._run(commands) if result.status != 0]
        if failed:
            raise failed[0]

    def _save(self, families: tuple[Family, ...]) -> dict[Family, dict[Variant, Snapshot]]:
        """Read each family through each variant that may hold rules of it."""
        asked = [(f, v) for f in families for v in self._candidates if v is not Variant.PLAIN or len(self._candidates) == 1]
        needed = [(f, v) for f, v in asked if v is not Variant.LEGACY or _legacy_may_have_tables(f)]
        results = self._run([Command((command_name(f, v, "save"),)) for f, v in needed])
        found: dict[Family, dict[Variant, Snapshot]] = {family: {} for family in families}
        for (family, variant), result in zip(needed, results, strict=True):
            if result.status == 0:
                found[family][variant] = parse_save(result.stdout)
            else:
                self._unusable[family, variant] = str(_failure(result))
        return found

    def _settle(self, family: Family, found: dict[Variant, Snapshot]) -> Snapshot:
        ours = [variant for variant, tables in found.items() if _has_ours(tables)]
        occupied = ours or [variant for variant, tables in found.items() if _has_foreign(tables)]
        if len(occupied) > 1:
            whose = "rules of ours" if ours else "rules"
            message = (
                f"both iptables variants have {whose} for {family} in this network namespace; "
                "say which one is meant with --iptables-variant legacy or --iptables-variant nft"
            )
            raise IstioInitError(message)
        if occupied:
            self._chosen[family] = occupied[0]
        return found[occupied[0]] if occupied else {}

    def _reason(self, family: Family, variant: Variant) -> str:
        return self._unusable.get((family, variant), "")

    def _reasons(self, family: Family) -> str:
        reasons = (self._reason(family, variant) for variant in self._candidates)
        return "; ".join(dict.fromkeys(reason for reason in reasons if reason))

    def _restore_command(self, family: Family, variant: Variant, script: str) -> Command:
        wait = f"{max(1, round(self.lock_wait))}"
        return Command((command_name(family, variant, "restore"), "--noflush", "-w", wait), script)

    def _run(self, commands: list[Command]) -> list[Result]:
        """Run commands; what no other variant could mend is an error at once."""
        results = run_all(commands, self.lock_wait + PATIENCE, self._observe)
        for result in results:
            error = _failure(result) if result.status else None
            if isinstance(error, (LockHeld, NotPermitted)):
                raise error
        return results


def _failure(result: Result) -> IstioInitError:
    """Say what a failed command means, and what to do."""
    if LOCK_MESSAGE in result.stderr:
        message = f"another program holds the xtables lock: `{' '.join(result.argv)}` said: {result.stderr}"
        return LockHeld(f"{message}; wait for it to end and run this again, or wait longer with --lock-wait SECONDS")
    if any(words in result.stderr for words in REFUSED_MESSAGES):
        return NotPermitted(
            f"`{' '.join(result.argv)}` was refused: {result.stderr}; {_missing_capability()}",
        )
    if result.missing:
        remedy = "install Debian's package `iptables`"
    elif result.status is None:
        remedy = "run this again; with -v it shows what the program was given"
    else:
        remedy = "the kernel may lack a module for it (see `dmesg`); with -v this shows what the program was given"
    return CommandError(result.argv, result.status, result.stderr, remedy)


def _missing_capability() -> str:
    for name, number in (("NET_ADMIN", CAP_NET_ADMIN), ("NET_RAW", CAP_NET_RAW)):
        if not has_capability(number):
            return f"give the container the capability {name} (securityContext.capabilities.add)"
    return "a security module or a user namespace may forbid it"


def _legacy_may_have_tables(family: Family) -> bool:
    try:
        with open(LEGACY_TABLES[family], encoding="ascii") as names:  # noqa: PTH123 - pathlib is dear to import
            return bool(names.read(1))
    except FileNotFoundError:
        return False
    except OSError:
        return True  # only root may read the list; iptables-legacy-save will tell


def _trial(table: Table) -> str:
    chain, rule = TRIAL_CHAIN, TRIAL_RULE.get(table, "-j RETURN")
    return f"*{table}\n:{chain} - [0:0]\n-A {chain} {rule}\n-F {chain}\n-X {chain}\nCOMMIT\n"


def _has_ours(tables: Snapshot) -> bool:
    return any(state.chains for state in tables.values())


def _has_foreign(tables: Snapshot) -> bool:
    return any(state.foreign for state in tables.values())
