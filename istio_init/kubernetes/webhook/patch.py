"""The difference between two JSON values as a JSON Patch (RFC 6902). Pure.

The library `jsonpatch` searches for the shortest patch, which takes five times as long as the whole injection. An injection
only adds members to objects and items to lists; any other change within a list replaces the list.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

Operation = dict[str, Any]


def difference(old: Any, new: Any, path: str = "") -> Iterator[Operation]:
    """Return the operations, in order, that turn one JSON value into another.

    Args:
        old: the original value.
        new: the resulting value.
        path: the location of both, as a JSON Pointer (RFC 6901); empty for whole documents.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        yield from _object_difference(old, new, path)
    elif isinstance(old, list) and isinstance(new, list):
        yield from _list_difference(old, new, path)
    elif _text(old) != _text(new):
        yield {"op": "replace", "path": path, "value": new}


def _object_difference(old: dict[str, Any], new: dict[str, Any], path: str) -> Iterator[Operation]:
    for name in old:
        if name not in new:
            yield {"op": "remove", "path": _member(path, name)}
    for name, value in new.items():
        if name in old:
            yield from difference(old[name], value, _member(path, name))
        else:
            yield {"op": "add", "path": _member(path, name), "value": value}


def _list_difference(old: list[Any], new: list[Any], path: str) -> Iterator[Operation]:
    """Insert single items if the old ones keep their order; else replace the list."""
    missing = [_text(item) for item in reversed(old)]
    inserted = []
    for index, item in enumerate(new):
        if missing and missing[-1] == _text(item):
            missing.pop()
        else:
            inserted.append({"op": "add", "path": f"{path}/{index}", "value": item})
    yield from [{"op": "replace", "path": path, "value": new}] if missing else inserted


def _text(value: Any) -> str:
    """Return a form for comparison: unlike in JSON, 1, 1.0 and True are equal in Python."""
    return json.dumps(value, sort_keys=True)


def _member(path: str, name: str) -> str:
    """Append a member's name to a JSON Pointer, escaped (RFC 6901)."""
    return f"{path}/{name.replace('~', '~0').replace('/', '~1')}"
