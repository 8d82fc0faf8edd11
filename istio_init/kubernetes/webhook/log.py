"""The server's log, and its limits: clients must not be able to fill a disk with it."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, NamedTuple

from istio_init.core.errors import shorten

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_LINES = 20  # in a period
PERIOD = 60.0  # seconds


class Logger(NamedTuple):
    """The server's log, one function per level."""

    debug: Callable[[str], None]
    info: Callable[[str], None]
    warn: Callable[[str], None]


class Throttle:
    """Passes on at most `MAX_LINES` lines in each period, and says how many it left out.

    Args:
        write: the log.
        clock: the time in seconds.
    """

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._clock = clock
        self._start = clock()
        self._count = 0

    def __call__(self, message: str) -> None:
        """Log a message."""
        now = self._clock()
        if now - self._start >= PERIOD:
            self.end_period()
            self._start = now
        self._count += 1
        if self._count <= MAX_LINES:
            self._write(message)
        elif self._count == MAX_LINES + 1:
            self._write(f"further warnings of this kind are left out, at most {PERIOD:g} s long")

    def end_period(self) -> None:
        """Say how many messages were left out."""
        if self._count > MAX_LINES:
            self._write(f"left out {self._count - MAX_LINES} warnings of this kind")
        self._count = 0


class LogBridge(logging.Handler):
    """Forwards the log of aiohttp and asyncio, such as malformed requests, to ours: one line, without a traceback.

    Args:
        warn: the log.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._warn = warn

    def emit(self, record: logging.LogRecord) -> None:
        """Forward one record."""
        error = record.exc_info[1] if record.exc_info else None
        self._warn(shorten(" ".join(f"{record.getMessage()}: {error or 'no details'}".split())))

    def logger(self) -> logging.Logger:
        """Make a standalone logger, whose records do not reach the root logger."""
        logger = logging.Logger("istio_init.kubernetes.webhook")  # noqa: LOG001 - must not propagate: the root prints tracebacks
        logger.addHandler(self)
        return logger
