"""One writer at a time: locks by flock(2), and signals that wait until a change is complete."""

from __future__ import annotations

import fcntl
import os
import time

from istio_init.core.errors import LockHeld, Unsupported
from istio_init.core.light import TYPE_CHECKING, contextmanager, signal

if TYPE_CHECKING:
    from collections.abc import Iterator

LOCK_WAIT = 10  # seconds
LOCK_POLL = 0.02  # seconds
# A thread can be in another namespace than its process (setns(2)), so it is the thread that counts.
NETWORK_NAMESPACE = "/proc/thread-self/ns/net"


@contextmanager
def namespace_lock(wait: int) -> Iterator[None]:
    """Be the only writer of this kind in this network namespace.

    The lock is a flock(2) on the namespace itself. So it needs no path that could be missing or read-only, holds between
    containers of one pod, does not hold between pods, and ends with the process.

    Raises:
        LockHeld: it was not free within `wait` seconds.
    """
    try:
        namespace = os.open(NETWORK_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        message = f"cannot open {NETWORK_NAMESPACE!r} to lock this network namespace: {error.strerror}; mount /proc"
        raise Unsupported(message) from None
    try:
        flock(namespace, wait, "the lock of this network namespace")
        yield
    finally:
        os.close(namespace)


def flock(file: int, wait: int, what: str) -> None:
    """Lock an open file, alone (flock(2)), waiting at most `wait` seconds; raise `LockHeld` after that."""
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
def signals_held() -> Iterator[None]:
    """Let a signal that would end the process wait until the change is complete."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
