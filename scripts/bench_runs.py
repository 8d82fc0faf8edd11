# ruff: noqa: INP001 - a part of scripts/bench, not a module of a package
"""How scripts/bench measures: whole processes, from exec to exit, in network namespaces that are set up alike."""

from __future__ import annotations

import ctypes
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, NamedTuple

from bench_programs import CLEAN, PYTHON, ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench_programs import Command, Program

RUN_TIMEOUT = 100.0  # seconds: a run that takes longer is stopped
ROW_BUDGET = 240.0  # seconds: no new round after that
SETTLE = 0.05  # seconds in which the kernel takes the former namespace apart
# A pod has a card with an address; some programs refuse to work without.
CARD = """\
link set lo up
link add eth0 type veth peer name eth1
address add 10.0.0.2/24 dev eth0
link set eth0 up
link set eth1 up
"""
SPAWN = ROOT / "scripts" / "bench_spawn.py"
CLONE_NEWNET = 0x40000000  # linux/sched.h

APPLY, SECOND = "apply", "second apply"

libc = ctypes.CDLL(None, use_errno=True)


class Sample(NamedTuple):
    """What one run took."""

    wall: float  # seconds from exec to exit
    cpu: float  # seconds of user and system time, of the process and all that it waited for
    kibibytes: int  # the peak of the largest process of the run
    stopped: bool  # for want of patience: the times are only lower bounds


class Samples(list[Sample]):
    """The runs of one command, one a round; none if it fails."""

    @property
    def stopped(self) -> bool:
        """Whether a run was stopped."""
        return any(sample.stopped for sample in self)

    @property
    def wall(self) -> float:
        """The median of the times, or the lower bound of a run that was stopped."""
        if self.stopped:
            return max(sample.wall for sample in self)
        return statistics.median(sample.wall for sample in self)

    @property
    def cpu(self) -> float:
        """The median, or a lower bound, as of `wall`."""
        if self.stopped:
            return max(sample.cpu for sample in self)
        return statistics.median(sample.cpu for sample in self)

    @property
    def kibibytes(self) -> int:
        """The highest of the peaks."""
        return max(sample.kibibytes for sample in self)


Row = dict[str, Samples]  # name of the program → its runs, in turns with those of the others


class CommandFailedError(Exception):
    """A command's status is not 0; the text is what it said last."""


class Bench(NamedTuple):
    """Runs commands one after the other, with `path` as their PATH."""

    path: str

    def run(self, words: tuple[str, ...]) -> Sample:
        """Run one command to its end.

        Raises:
            CommandFailedError: if it fails.
        """
        # Nothing of this process's own environment: an ISTIO_ variable would change what is done.
        spawn = [PYTHON, "-I", "-S", str(SPAWN), str(RUN_TIMEOUT), *words]
        with tempfile.TemporaryFile() as stderr:
            told = subprocess.run(spawn, check=True, stdout=subprocess.PIPE, stderr=stderr, env={"PATH": self.path}).stdout
            wall, cpu, kibibytes, stopped, status = told.split()
            if int(status) and not int(stopped):
                stderr.seek(0)
                last_words = b"".join(stderr.readlines()[-10:]).decode(errors="replace")
                raise CommandFailedError(f"status {int(status)}\n{last_words}")
        return Sample(float(wall), float(cpu), int(kibibytes), bool(int(stopped)))


def fresh_namespace() -> None:
    """Move this process into a new network namespace with a card; the commands that it starts run there."""
    if libc.unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    subprocess.run(["ip", "-batch", "-"], input=CARD, text=True, check=True)  # noqa: S607 - whichever is on the PATH
    time.sleep(SETTLE)


def measure_lives(bench: Bench, what: str, programs: list[Program], wanted: int) -> dict[str, Row]:
    """Measure an apply, a second one and a cleaning in one namespace a program, without any excluded CIDR."""
    rows: dict[str, Row] = {APPLY: {}, SECOND: {}, CLEAN: {}}
    for program in programs:
        for step in rows if program.clean else (APPLY, SECOND):
            rows[step][program.name] = Samples()
    failing: set[tuple[str, str]] = set()
    for number in _rounds(what, wanted):
        for program in _in_turn(programs, number):
            fresh_namespace()
            for step, row in rows.items():
                command = program.clean if step == CLEAN else program.apply
                if command and (step, program.name) not in failing:
                    try:
                        row[program.name].append(bench.run(command.excluding("")))
                    except CommandFailedError as error:
                        _note_failure(program.name, step, error)
                        failing.add((step, program.name))
                        row[program.name].clear()
    return rows


def _note_failure(name: str, step: str, error: CommandFailedError) -> None:
    """Tell that a program fails; one that cannot even apply is a mistake in the command line."""
    if step == APPLY:
        sys.exit(f"scripts/bench: {name}: {error}")
    progress(f"{name}: {step} fails: {error}")


def measure_sizes(bench: Bench, what: str, programs: list[Program], wanted: dict[int, int]) -> dict[int, Row]:
    """Measure an apply for each number of excluded CIDRs; a program that was stopped is left out of the larger ones."""
    sizes: dict[int, Row] = {}
    remaining = [program for program in programs if program.apply.takes_cidrs]
    for excluded, rounds in wanted.items():
        cidrs = cidrs_of(excluded)
        row = sizes[excluded] = {program.name: Samples() for program in remaining}
        for number in _rounds(f"{what}, {excluded:,} excluded CIDRs", rounds):
            for program in _in_turn(remaining, number):
                if not row[program.name].stopped:
                    fresh_namespace()
                    try:
                        row[program.name].append(bench.run(program.apply.excluding(cidrs)))
                    except CommandFailedError as error:
                        _note_failure(program.name, APPLY, error)
        remaining = [program for program in remaining if not row[program.name].stopped]
    return sizes


def cidrs_of(number: int) -> str:
    """List CIDRs that do not touch one another and are short, for 10,000 of them must fit into one argument (128 KiB)."""
    return ",".join(f"{1 + n // 5000}.{n // 500 % 10}.{n // 5 % 100}.{n % 5 * 2}/32" for n in range(number))


def measure_floors(bench: Bench, floors: dict[str, Command], wanted: int) -> Row:
    """Measure what is less than an apply: the parts that each start of a program pays for."""
    row = {name: Samples() for name in floors}
    fresh_namespace()
    for _ in _rounds("less than an apply", wanted):
        for name, command in floors.items():
            row[name].append(bench.run(command.words))
    return row


def _in_turn(programs: list[Program], number: int) -> list[Program]:
    """Give each second round the other way about, for a program may leave work to the kernel that the next one meets."""
    return programs[::-1] if number % 2 else programs


def _rounds(what: str, wanted: int) -> Iterator[int]:
    """Count rounds until there are enough of them, or the time is up."""
    started = time.monotonic()
    done = 0
    while done < wanted and time.monotonic() - started < ROW_BUDGET:
        yield done
        done += 1
    progress(f"{what}: {done} of {wanted} rounds")


def progress(text: str) -> None:
    """Tell who waits what goes on."""
    print(f"scripts/bench: {text}", file=sys.stderr, flush=True)  # noqa: T201 - the result goes to standard output
