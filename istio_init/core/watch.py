"""Detects certificate rotation."""

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
    """Return a fingerprint of certificate, key and root certificate; empty unless all three exist and are non-empty."""
    try:
        contents = [(Path(directory) / name).read_bytes() for name in FILES]
    except OSError:
        return ""
    return hashlib.sha256(b"\0".join(contents)).hexdigest() if all(contents) else ""


@contextmanager
def watch(directory: str, on_change: Callable[[], None]) -> Iterator[None]:
    """Call `on_change`, from another thread, whenever something in a directory may have changed.

    A mounted Kubernetes secret is updated by renaming a single symbolic link.

    Raises:
        OSError: the directory cannot be watched.
    """

    class ChangeHandler(FileSystemEventHandler):
        def on_any_event(self, event: FileSystemEvent) -> None:
            # Reads, such as those of `digest`, are not changes.
            if not isinstance(event, FileOpenedEvent) and event.event_type != "closed_no_write":
                on_change()

    observer = Observer()
    observer.schedule(ChangeHandler(), directory)
    observer.start()
    try:
        yield
    finally:
        # On shutdown, the observer thread can find its inotify descriptor closed, which watchdog (7.1) logs as an error.
        WATCHDOG_LOG.addFilter(_drop_record)
        observer.stop()
        observer.join()
        WATCHDOG_LOG.removeFilter(_drop_record)


def _drop_record(_record: logging.LogRecord) -> bool:
    return False
