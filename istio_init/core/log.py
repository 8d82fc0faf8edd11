"""The log on standard error: one line per message, as text or as JSON.

It does not use the standard library's `logging`, which is slow to import: it takes longer than all of this program's own
modules together, for a process that writes one line.
"""

from __future__ import annotations

import sys

from istio_init.core.errors import shorten_words
from istio_init.core.light import TYPE_CHECKING, Any, IntEnum, NamedTuple
from istio_init.core.option import Kind, Option

if TYPE_CHECKING:
    from collections.abc import Mapping

TEXT, JSON = "text", "json"


class Level(IntEnum):
    """The severity of a message."""

    DEBUG = 10
    INFO = 20
    WARNING = 30
    ERROR = 40
    NONE = 50  # of no message: as a threshold, it keeps the log empty


class Log(NamedTuple):
    """Where messages go.

    Attributes:
        json: one JSON object per line instead of text.
        level: the lowest level that is written.
    """

    json: bool = False
    level: Level = Level.INFO

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Log:
        """Create the log that the options of `log_options` select."""
        level = Level.DEBUG if values.get("verbose") else Level.ERROR if values.get("quiet") else Level.INFO
        return cls(values.get("log_format") == JSON, level)

    def write(self, level: Level, message: str) -> None:
        """Write one message, unless it is below the level."""
        if level < self.level:
            return
        if level > Level.DEBUG:
            message = shorten_words(message)  # one line, whatever a tool or a path had in it
        word = "" if level is Level.INFO else f"{level.name.lower()}: "
        line = _json_line(level, message) if self.json else f"istio-init: {word}{message}"
        # That nobody reads the log must not keep anything from being done.
        if sys.stderr is None:  # closed from the start
            return
        try:
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()
        except OSError:
            pass

    def debug(self, message: str) -> None:
        """Write a message that only `-v` shows."""
        self.write(Level.DEBUG, message)

    def warning(self, message: str) -> None:
        """Write a warning."""
        self.write(Level.WARNING, message)


def log_options(quiet: tuple[str, ...] = ("-q", "--quiet")) -> tuple[Option, ...]:
    """Return the options that all commands have, `quiet` under these flags."""
    return (
        Option("log_format", ("--log-format",), metavar="FORMAT", choices=(TEXT, JSON), default=TEXT,
               help=f"Form of the log, which goes to standard error. Default: {TEXT}."),
        Option("verbose", ("-v", "--verbose"), kind=Kind.FLAG, help="Log more: each program that is run, and its input."),
        Option("quiet", quiet, kind=Kind.FLAG, help="Log errors only."),
    )  # fmt: skip


def _json_line(level: Level, message: str) -> str:
    from datetime import UTC, datetime
    from json import dumps

    return dumps({"time": datetime.now(UTC).isoformat(), "level": level.name.lower(), "message": message})
