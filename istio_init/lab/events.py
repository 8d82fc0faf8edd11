"""How the lab's own programs log: one line an event, on standard output."""

from __future__ import annotations

import json
import sys


def log(event: str, **particulars: object) -> None:
    """Write a line: the event, then `name=value`; a value with spaces or anything odd is quoted as in JSON."""
    words = [event, *(f"{name}={_quoted(str(value))}" for name, value in particulars.items())]
    sys.stdout.write(" ".join(words) + "\n")
    sys.stdout.flush()


def _quoted(text: str) -> str:
    plain = text and text.isascii() and text.isprintable() and not set(text) & set(" \"'")
    return text if plain else json.dumps(text)
