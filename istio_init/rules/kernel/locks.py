"""One writer at a time: flock(2) locks, and signals deferred until a change is complete."""

from __future__ import annotations

import fcntl
import os
import time

from istio_init.core.errors import Ended, LockHeld, Unsupported
from istio_init.core.light import TYPE_CHECKING, Any, NamedTuple, contextmanager, signal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGHUP)  # those that end a run, besides SIGINT
LOCK_POLL = 0.02  # seconds
# setns(2) moves a thread, not the process, so the thread's namespace is the one that counts.
NETWORK_NAMESPACE = "/proc/thread-self/ns/net"


class Waits(NamedTuple):
    """How long to wait, in seconds.

    Attributes:
        lock: for another program that holds a lock.
        tool: for a program that was started.
    """

    lock: int = 10
    tool: int = 30


USUAL_WAITS = Waits()

_departures: list[bool] = []


def note_departure() -> None:
    """Note that this process now works on another network namespace than the one that it was started in."""
    _departures.append(True)


def has_departed() -> bool:
    """Return whether it does: lock files that it finds are then not of those who work where it does now."""
    return bool(_departures)


@contextmanager
def namespace_lock(wait: int) -> Iterator[None]:
    """Hold the exclusive lock of this program on this network namespace.

    The lock is a flock(2) on the namespace itself. It therefore needs no path that could be missing or read-only, applies
    across the containers of a pod but not across pods, and is released when the process ends.

    Args:
        wait: seconds to wait for the lock.

    Raises:
        LockHeld: the lock was not released within `wait` seconds.
        Unsupported: the namespace cannot be opened, because /proc is not mounted.
    """
    try:
        namespace = os.open(NETWORK_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        message = f"cannot open {NETWORK_NAMESPACE!r} to lock this network namespace: {error.strerror}; mount /proc"
        raise Unsupported(message) from None
    try:
        # If this process is killed, a tool that it started may still be writing: it holds the lock, too, until it ends.
        os.set_inheritable(namespace, True)  # noqa: FBT003 - the function's only parameter
        flock(namespace, wait, "the lock of this network namespace")
        yield
    finally:
        os.close(namespace)


def flock(file: int, wait: int, what: str) -> None:
    """Take an exclusive lock on an open file.

    Args:
        file: file descriptor.
        wait: seconds to wait for the lock.
        what: name of the lock, for the error message.

    Raises:
        LockHeld: the lock was not released within `wait` seconds.
    """
    deadline = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                message = (
                    f"another program holds {what} and did not release it within {wait} s; "
                    "wait for it to end and run this again, or wait longer with --lock-wait SECONDS"
                )
                raise LockHeld(message) from None
            time.sleep(LOCK_POLL)
        else:
            return


@contextmanager
def ended_by_signals() -> Iterator[Callable[[], None]]:
    """Let SIGTERM and SIGHUP end a block with an exception, as Python does with SIGINT, so that its tools are ended, too.

    The default would not do: it leaves them running, and for the first process of a container it does nothing at all
    (pid_namespaces(7)). What is ignored stays ignored.

    Yields:
        a function that blocks the signals until the end of the block, when they have their usual effect.

    Raises:
        Ended: one of them came before that.
    """
    usual: dict[int, Any] = {}

    def end(number: int, _: object) -> NoReturn:
        raise Ended(number)

    def hold() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, *SIGNALS))
        restore()

    def restore() -> None:
        while usual:
            signal.signal(*usual.popitem())

    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        for number in SIGNALS:
            if signal.getsignal(number) == signal.SIG_DFL:
                try:
                    usual[number] = signal.signal(number, end)
                except ValueError:  # only the main thread may, and only that one is interrupted
                    break
        yield hold
    finally:
        restore()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
