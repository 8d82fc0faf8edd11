"""Child processes and signals for the launcher, behind a protocol that tests replace.

The signals that the launcher handles are blocked in every thread and received one at a time with sigtimedwait(2), so none
is lost. This also works for PID 1 of a container, for which the kernel ignores default signal actions.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

WAKE_UP = signal.SIGUSR1  # sent to this process by the thread that watches certificates
STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT})
HANDLED_SIGNALS = STOP_SIGNALS | {signal.SIGCHLD, WAKE_UP}
IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


class ExitedChild(NamedTuple):
    """A child process that has exited.

    Attributes:
        pid: its process ID.
        status: its exit status, or the negated signal number.
    """

    pid: int
    status: int


class Processes(Protocol):
    """The system interface of the launcher."""

    def now(self) -> float:
        """Return a monotonic time in seconds."""

    def wait(self, seconds: float | None) -> signal.Signals | None:
        """Wait for one of `HANDLED_SIGNALS`, indefinitely if `seconds` is None; None on timeout."""

    def start(self, argv: tuple[str, ...]) -> int:
        """Start a program and return its process ID.

        Raises:
            OSError: it cannot be started.
        """

    def reap(self) -> Iterator[ExitedChild]:
        """Reap every exited child, including adopted orphans."""

    def send(self, pid: int, number: signal.Signals) -> None:
        """Send a signal to a child."""


class RealProcesses:
    """`Processes` on the real system."""

    def now(self) -> float:
        """Return the time of the monotonic clock."""
        return time.monotonic()

    def wait(self, seconds: float | None) -> signal.Signals | None:
        """Wait for a signal."""
        if seconds is None:
            return signal.Signals(signal.sigwait(HANDLED_SIGNALS))
        received = signal.sigtimedwait(HANDLED_SIGNALS, max(seconds, 0.0))
        return signal.Signals(received.si_signo) if received else None

    def start(self, argv: tuple[str, ...]) -> int:
        """Start a program with inherited output and environment, and with default signal dispositions and mask.

        It gets its own process group, so Ctrl-C at a terminal only reaches the launcher, which drains first.
        """
        stdin = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
        return os.posix_spawnp(
            argv[0], argv, os.environ, file_actions=[stdin], setpgroup=0, setsigmask=[], setsigdef=IGNORED_BY_PYTHON
        )

    def reap(self) -> Iterator[ExitedChild]:
        """Reap every exited child."""
        with suppress(ChildProcessError):  # no children
            while (exited := os.waitpid(-1, os.WNOHANG))[0]:
                yield ExitedChild(exited[0], os.waitstatus_to_exitcode(exited[1]))

    def send(self, pid: int, number: signal.Signals) -> None:
        """Send a signal; this is harmless for a zombie."""
        os.kill(pid, number)


@contextmanager
def block_signals() -> Iterator[None]:
    """Block `HANDLED_SIGNALS` in this thread and in threads that it starts later."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # with an inherited SIG_IGN, exited children would not be reported
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED_SIGNALS)
    try:
        yield
    finally:
        while signal.sigtimedwait(HANDLED_SIGNALS, 0):  # late signals must not kill the program once unblocked
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def wake_up() -> None:
    """Wake the launcher, from any thread."""
    os.kill(os.getpid(), WAKE_UP)
