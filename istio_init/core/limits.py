"""Limits of JSON and YAML from outside: a short text must not mean a value that fills memory or overflows the stack.

Pure, and without a parser of YAML: there are two of them here, whose events have the same names (yaml.org, "Processes").
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MAX_DEPTH = 100  # levels of objects and lists; a pod has about ten, and the schemas of custom resources some dozens
MAX_VALUES = 1_000_000  # in a stream of documents; in YAML, each takes up to 0.5 kB while it is read
MAX_DIGITS = 100  # of an integer; those of Kubernetes have up to 19, and Python neither reads nor prints more than 4,300
MAX_EXPANDED = 16 * 1024 * 1024  # characters of a YAML stream with its aliases written out
VALUE_SIZE = 16  # characters that each value counts for besides its text, as it takes memory, too

TOO_DEEP = f"it has more than {MAX_DEPTH} levels"
TOO_MANY = f"it has more than {MAX_VALUES} values"
TOO_MANY_DIGITS = f"it has an integer of more than {MAX_DIGITS} digits"


def read_json(
    text: str | bytes | bytearray,
    parse_constant: Callable[[str], Any] | None = None,
    object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Any:
    """Parse JSON.

    Args:
        text: one document.
        parse_constant: see `json.loads`.
        object_pairs_hook: likewise.

    Raises:
        json.JSONDecodeError: it is not JSON.
        ValueError: it exceeds a limit.
    """
    if _most_values(text) > MAX_VALUES:
        raise ValueError(TOO_MANY)
    try:
        value = json.loads(text, parse_int=read_integer, parse_constant=parse_constant, object_pairs_hook=object_pairs_hook)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    check_depth(value)
    return value


def _most_values(text: str | bytes | bytearray) -> int:
    """Return a number that the values of a JSON text cannot exceed; a comma in a string counts, too."""
    marks: Any = "[{," if isinstance(text, str) else (b"[", b"{", b",")
    return sum(map(text.count, marks)) if text.lstrip()[:1] in marks else 0


def read_integer(text: str) -> int:
    """Parse a decimal integer.

    Raises:
        ValueError: it exceeds the limit.
    """
    check_digits(text)
    return int(text)


def check_digits(text: str) -> None:
    """Check the length of an integer in any notation; YAML has some whose conversion takes minutes.

    Raises:
        ValueError: it exceeds the limit.
    """
    if len(text) > MAX_DIGITS:
        raise ValueError(TOO_MANY_DIGITS)


def check_depth(value: Any) -> None:
    """Check how deeply a value of JSON or YAML is nested.

    Raises:
        ValueError: it exceeds the limit.
    """
    opened = [iter([value])]
    while opened:
        inner = next((one for one in opened[-1] if isinstance(one, (dict, list))), None)
        if inner is None:
            opened.pop()
            continue
        opened.append(iter(inner.values() if isinstance(inner, dict) else inner))
        if len(opened) > MAX_DEPTH + 1:
            raise ValueError(TOO_DEEP)


def counted(values: int) -> int:
    """Count one more value of a document.

    Args:
        values: those before it.

    Raises:
        ValueError: it exceeds the limit.
    """
    if values >= MAX_VALUES:
        raise ValueError(TOO_MANY)
    return values + 1


def check_aliases(events: Iterable[Any]) -> None:
    """Check how much a stream of YAML events would be with each alias replaced by its value.

    Raises:
        ValueError: it exceeds the limit, or a value contains an alias for itself.
    """
    sizes: dict[str, int] = {}  # of the values that have an anchor
    opened: list[tuple[str | None, int]] = []  # the collections around an event: anchor, and size of all before it
    size = 0
    for event in events:
        kind = type(event).__name__
        if kind == "AliasEvent":
            if event.anchor in {anchor for anchor, _ in opened}:
                raise ValueError(f"the alias *{event.anchor} is in the value that it stands for")
            size += sizes.get(event.anchor, 0)
        elif kind == "ScalarEvent":
            size += VALUE_SIZE + len(event.value)
            if event.anchor:
                sizes[event.anchor] = VALUE_SIZE + len(event.value)
        elif kind in ("SequenceStartEvent", "MappingStartEvent"):
            opened.append((event.anchor, size))
            size += VALUE_SIZE
        elif kind in ("SequenceEndEvent", "MappingEndEvent"):
            anchor, before = opened.pop()
            if anchor:
                sizes[anchor] = size - before
        if size > MAX_EXPANDED:
            raise ValueError(f"with its aliases written out, it has more than {MAX_EXPANDED} characters")
