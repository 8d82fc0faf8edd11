"""The difference between two JSON values as a JSON Patch (RFC 6902). Pure.

The library `jsonpatch` looks for the shortest patch, and takes five times as long for it as all of the injection. What an
injection changes are new members of objects and new items of lists; for anything else in a list, the list is replaced.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

Operation = dict[str, Any]


def difference(old: Any, new: Any, path: str = "") -> Iterator[Operation]:
    """Give the operations, in their order, that make one JSON value of another.

    Args:
        old: the one.
        new: the other.
        path: where both are, as a JSON Pointer (RFC 6901); empty for whole documents.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        yield from _of_objects(old, new, path)
    elif isinstance(old, list) and isinstance(new, list):
        yield from _of_lists(old, new, path)
    elif _text(old) != _text(new):
        yield {"op": "replace", "path": path, "value": new}


def _of_objects(old: dict[str, Any], new: dict[str, Any], path: str) -> Iterator[Operation]:
    for name in old:
        if name not in new:
            yield {"op": "remove", "path": _member(path, name)}
    for name, value in new.items():
        if name in old:
            yield from difference(old[name], value, _member(path, name))
        else:
            yield {"op": "add", "path": _member(path, name), "value": value}


def _of_lists(old: list[Any], new: list[Any], path: str) -> Iterator[Operation]:
    """Insert one item after the other as long as the old ones keep their order."""
    missing = [_text(item) for item in reversed(old)]
    inserted = []
    for index, item in enumerate(new):
        if missing and missing[-1] == _text(item):
            missing.pop()
        else:
            inserted.append({"op": "add", "path": f"{path}/{index}", "value": item})
    yield from [{"op": "replace", "path": path, "value": new}] if missing else inserted


def _text(value: Any) -> str:
    """Make values comparable as JSON has them: Python takes 1, 1.0 and True for the same."""
    return json.dumps(value, sort_keys=True)


def _member(path: str, name: str) -> str:
    """Go down to a member, whose name may have the two characters in it that RFC 6901 escapes."""
    return f"{path}/{name.replace('~', '~0').replace('/', '~1')}"
