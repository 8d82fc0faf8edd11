"""Where the parts of a YAML text stand in it, as a tree of its collections. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.events import (
    DocumentStartEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK_SCALARS = ("|", ">")


class Node(NamedTuple):
    """A value in a text.

    Attributes:
        start: where it begins: of a block collection, where its first key or dash stands.
        end: behind its last character; what follows on the same line, and comments, are not part of it.
        flow: whether it is written in brackets, as all of JSON is.
        items: of a sequence.
        members: of a mapping, by key: where the key begins, and the value.
    """

    start: int
    end: int
    flow: bool = False
    items: tuple[Node, ...] = ()
    members: dict[str, tuple[int, Node]] = {}  # noqa: RUF012 - nobody changes it


def read_trees(text: str) -> list[Node]:
    """Give the tree of each document.

    Raises:
        ruamel.yaml.error.YAMLError: it is no YAML.
    """
    events = iter(YAML(typ="safe", pure=True).parse(text))
    return [_node(text, next(events), events) for event in events if isinstance(event, DocumentStartEvent)]


def _node(text: str, event: Any, events: Iterator[Any]) -> Node:
    start, end = event.start_mark.index, event.end_mark.index
    if isinstance(event, SequenceStartEvent):
        items, last = [], next(events)
        while not isinstance(last, SequenceEndEvent):
            items.append(_node(text, last, events))
            last = next(events)
        end = last.end_mark.index if event.flow_style else max([end, *(item.end for item in items)])
        return Node(start, end, bool(event.flow_style), tuple(items))
    if isinstance(event, MappingStartEvent):
        members, last = {}, next(events)
        while isinstance(last, NodeEvent):
            key, at = str(getattr(last, "value", "")), last.start_mark.index
            behind = _node(text, last, events).end
            value = _node(text, next(events), events)
            if value.start == value.end:  # there is none, and the library says that it is where the next thing begins
                colon = text.index(":", behind) + 1
                value = Node(colon, colon)
            members[key] = (at, value)
            last = next(events)
        end = last.end_mark.index if event.flow_style else max([end, *(value.end for _, value in members.values())])
        return Node(start, end, bool(event.flow_style), (), members)
    if isinstance(event, ScalarEvent) and event.style in BLOCK_SCALARS:
        end -= text.endswith("\n", start, end)  # its last line's end is the line's, like any other's
        end -= text.endswith("\r", start, end)
    return Node(start, end)
