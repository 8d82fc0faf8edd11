"""Runs the programs of iptables, and explains their failures."""

from __future__ import annotations

import os

from istio_init.core.errors import CommandError, IstioInitError, LockHeld, NotPermitted, ToolFault
from istio_init.core.light import TYPE_CHECKING
from istio_init.core.runner import Command, Result, run_all
from istio_init.rules.kernel.legacy import (
    LOCK_FILE_REMEDY,
    XTABLES_LOCK_VARIABLE,
    is_lock_chosen,
    is_lock_of_others,
    lock_notice,
    lock_path,
    own_lock_file,
)
from istio_init.rules.kernel.modules import missing_part
from istio_init.rules.kernel.remedies import missing_capability, remedy_for_refusal
from istio_init.rules.kernel.user_namespaces import is_owner_hidden
from istio_init.rules.model import Family

if TYPE_CHECKING:
    from istio_init.core.runner import Observer
    from istio_init.rules.kernel.locks import Waits

LOCK_FILE_MESSAGE = "can't open lock file"
LOCK_MESSAGE = "holding the xtables lock"
REFUSED_MESSAGES = ("Permission denied", "Operation not permitted", "you must be root")
NO_NAMES_MESSAGE = "Failed to list table names"
# Legacy prints only this, whether the kernel has no such table or did not permit a raw socket.
NO_TABLE_MESSAGE = "unable to initialize table"

RUN_AGAIN = "run this again once the cause is removed; -v logs the input of the program"


class Programs:
    """The programs of iptables, with what all their runs share.

    Args:
        waits: how long to wait for the xtables lock, and for a program.
        observe: receives each command that is run.
        notices: receives a warning where another lock file is used.
    """

    def __init__(self, waits: Waits, observe: Observer, notices: list[str]) -> None:
        self._waits = waits
        self._observe = observe
        self._notices = notices
        self._lock_path = ""  # of a lock file of our own, where the usual one cannot be opened

    def restore_command(self, program: str, script: str) -> Command:
        """Return the command with which a program loads a script, and leaves what that does not name."""
        wait = f"{max(1, self._waits.lock)}"  # 0 would be a wait without end
        return Command((program, "--noflush", "-w", wait), script)

    def run(self, commands: list[Command], unsure: frozenset[str] = frozenset()) -> list[Result]:
        """Run commands in parallel; an error that no other variant could avoid is raised.

        Args:
            commands: the commands.
            unsure: programs that may be refused without an error.

        Raises:
            LockHeld: another program holds the xtables lock.
            NotPermitted: a program was refused.
        """
        results = self._run_with_lock_file(commands)
        for result in results:
            error = failure(result) if result.status != 0 and result.argv[0] not in unsure else None
            if isinstance(error, (LockHeld, NotPermitted)):
                raise error
        return results

    def _run_with_lock_file(self, commands: list[Command]) -> list[Result]:
        """Run commands; rerun those that could not create their lock file, with a lock file of our own."""
        if not self._lock_path and is_lock_of_others() and any("nft" not in command.argv[0] for command in commands):
            self._lock_path = lock_path(own_lock_file())
        results = self._run_all(commands)
        failed = [number for number, result in enumerate(results) if LOCK_FILE_MESSAGE in result.stderr]
        if failed and not (self._lock_path or is_lock_chosen()):
            self._lock_path = lock_path(own_lock_file())
            reason = results[failed[0]].stderr.rpartition(": ")[2]
            self._notices.append(lock_notice(reason, self._lock_path))
            for number, result in zip(failed, self._run_all([commands[number] for number in failed]), strict=True):
                results[number] = result
        return results

    def _run_all(self, commands: list[Command]) -> list[Result]:
        given = [self._with_own_lock(command) if self._lock_path else command for command in commands]
        return run_all(given, self._waits.lock + self._waits.tool, self._observe)

    def _with_own_lock(self, command: Command) -> Command:
        return command._replace(environment=((XTABLES_LOCK_VARIABLE, self._lock_path),))


def is_installed(program: str) -> bool:
    """Return whether a program is on the PATH."""
    path = os.environ.get("PATH", os.defpath)
    return any(os.access(os.path.join(directory, program), os.X_OK) for directory in path.split(os.pathsep))


def failure(result: Result) -> IstioInitError:
    """Explain a failed command and how to fix it."""
    if LOCK_MESSAGE in result.stderr:
        message = f"another program holds the xtables lock: `{' '.join(result.argv)}` said: {result.stderr}"
        return LockHeld(f"{message}; wait for it to end and run this again, or wait longer with --lock-wait SECONDS")
    program = result.argv[0]
    # nf_tables is configured by netlink, for which NET_ADMIN is enough.
    needs_raw = "nft" not in program
    refused = any(words in result.stderr for words in REFUSED_MESSAGES) or (
        NO_TABLE_MESSAGE in result.stderr and (missing_capability(program, needs_raw=needs_raw) or is_owner_hidden())
    )
    if refused and LOCK_FILE_MESSAGE not in result.stderr:
        remedy = remedy_for_refusal(program, needs_raw=needs_raw)
        if NO_NAMES_MESSAGE in result.stderr and not is_owner_hidden():
            remedy = "only root may list legacy tables: run as root (runAsUser: 0), or use --iptables-variant nft"
        return NotPermitted(f"`{' '.join(result.argv)}` was refused: {result.stderr}; {remedy}")
    family = Family.IPV6 if program.startswith("ip6") else Family.IPV4
    if LOCK_FILE_MESSAGE in result.stderr:
        remedy = LOCK_FILE_REMEDY
    elif result.missing:
        remedy = "install Debian's package `iptables`"
    elif result.is_fault:
        remedy = RUN_AGAIN
    elif not (remedy := missing_part(result.stderr, result.stdin, family, legacy="legacy" in program)):
        remedy = "the kernel may lack a module for it (see `dmesg`); -v logs the input of the program"
    kind = ToolFault if result.is_fault else CommandError
    return kind(result.argv, result.status, result.stderr, remedy)
