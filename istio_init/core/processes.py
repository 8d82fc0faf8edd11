"""Child processes and signals, as the launcher sees them; a test gives it others.

The signals that the launcher waits for are blocked in every thread, and taken one at a time with sigtimedwait(2): so
none is lost, also for process 1 of a container, to which the kernel gives no default actions.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

NOTICE = signal.SIGUSR1  # sent to ourselves, by the thread that watches certificates
STOPPING = frozenset({signal.SIGTERM, signal.SIGINT})
AWAITED = STOPPING | {signal.SIGCHLD, NOTICE}
IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


class Ended(NamedTuple):
    """A child that has ended.

    Attributes:
        pid: its process id.
        status: its exit status; negative for a signal.
    """

    pid: int
    status: int


class Processes(Protocol):
    """What the launcher asks of the system."""

    def now(self) -> float:
        """Give the time in seconds, from any fixed point."""

    def wait(self, seconds: float | None) -> signal.Signals | None:
        """Wait for a signal of `AWAITED`, for ever or for some seconds; None when they are over."""

    def start(self, argv: tuple[str, ...]) -> int:
        """Start a program and give its process id.

        Raises:
            OSError: it cannot be started.
        """

    def ended(self) -> Iterator[Ended]:
        """Take in each child that has ended, also those that were somebody else's before."""

    def send(self, pid: int, number: signal.Signals) -> None:
        """Send a signal to a child."""


class RealProcesses:
    """The system's own."""

    def now(self) -> float:
        """Give the monotonic clock's time."""
        return time.monotonic()

    def wait(self, seconds: float | None) -> signal.Signals | None:
        """Wait for a signal."""
        if seconds is None:
            return signal.Signals(signal.sigwait(AWAITED))
        found = signal.sigtimedwait(AWAITED, max(seconds, 0.0))
        return signal.Signals(found.si_signo) if found else None

    def start(self, argv: tuple[str, ...]) -> int:
        """Start a program with this one's output and environment, and its signals as if Python were not between.

        It has a process group of its own: ctrl-C at a terminal is for the launcher, which drains first.
        """
        nothing = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
        return os.posix_spawnp(
            argv[0], argv, os.environ, file_actions=[nothing], setpgroup=0, setsigmask=[], setsigdef=IGNORED_BY_PYTHON
        )

    def ended(self) -> Iterator[Ended]:
        """Reap."""
        with suppress(ChildProcessError):  # there are none
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                yield Ended(found[0], os.waitstatus_to_exitcode(found[1]))

    def send(self, pid: int, number: signal.Signals) -> None:
        """Send a signal; a child that has ended, but was not yet taken in, does not mind."""
        os.kill(pid, number)


@contextmanager
def signals_awaited() -> Iterator[None]:
    """Block the signals of `AWAITED` in this thread and those that it starts from now on."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it was ignored, ends of children would go unnoticed
    before = signal.pthread_sigmask(signal.SIG_BLOCK, AWAITED)
    try:
        yield
    finally:
        while signal.sigtimedwait(AWAITED, 0):  # whatever came too late must not end the program when it is let in
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def notice() -> None:
    """Wake the launcher, from any thread."""
    os.kill(os.getpid(), NOTICE)
