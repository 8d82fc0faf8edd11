"""Notices a new certificate of the pod."""

from __future__ import annotations

import hashlib
import logging
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from watchdog.events import FileOpenedEvent, FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WATCHDOG_LOG = logging.getLogger("watchdog.observers.inotify")
FILES = ("cert-chain.pem", "key.pem", "root-cert.pem")


def digest(directory: str) -> str:
    """Give a fingerprint of the certificate, its key and its root; empty unless all three are there."""
    try:
        contents = [(Path(directory) / name).read_bytes() for name in FILES]
    except OSError:
        return ""
    return hashlib.sha256(b"\0".join(contents)).hexdigest() if all(contents) else ""


@contextmanager
def watch(directory: str, notice: Callable[[], None]) -> Iterator[None]:
    """Call `notice`, from another thread, whenever something in a directory may have changed.

    A Kubernetes secret changes by the rename of one symbolic link in it.

    Raises:
        OSError: the directory cannot be watched.
    """

    class Handler(FileSystemEventHandler):
        def on_any_event(self, event: FileSystemEvent) -> None:
            # Reading the files, which `digest` does, is no change.
            if not isinstance(event, FileOpenedEvent) and event.event_type != "closed_no_write":
                notice()

    observer = Observer()
    observer.schedule(Handler(), directory)
    observer.start()
    try:
        yield
    finally:
        # Its thread may find its source closed while it ends, and watchdog (7.1) calls that an error on standard error.
        WATCHDOG_LOG.addFilter(_nothing)
        observer.stop()
        observer.join()
        WATCHDOG_LOG.removeFilter(_nothing)


def _nothing(_record: logging.LogRecord) -> bool:
    return False
