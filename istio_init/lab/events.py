"""The log format of the lab's programs: one line per event, on standard output."""

from __future__ import annotations

import json
import sys


def log(event: str, **fields: object) -> None:
    """Log an event with `name=value` fields; values with spaces, quotes or non-printable characters are quoted as JSON."""
    words = [event, *(f"{name}={_quoted(str(value))}" for name, value in fields.items())]
    sys.stdout.write(" ".join(words) + "\n")
    sys.stdout.flush()


def _quoted(text: str) -> str:
    plain = text and text.isascii() and text.isprintable() and not set(text) & set(" \"'")
    return text if plain else json.dumps(text)
