"""Parses YAML into a tree of collections with their positions in the text. Pure."""

from __future__ import annotations

from types import MappingProxyType
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
    from collections.abc import Iterator, Mapping

BLOCK_SCALARS = ("|", ">")


class Node(NamedTuple):
    """A value in a text.

    Attributes:
        start: its start; that of a block collection is its first key or dash.
        end: the position after its last character, excluding trailing comments.
        flow: whether it is in flow style, with brackets, as all of JSON is.
        items: the items of a sequence.
        members: the members of a mapping: key → start of the key, and value.
    """

    start: int
    end: int
    flow: bool = False
    items: tuple[Node, ...] = ()
    members: Mapping[str, tuple[int, Node]] = MappingProxyType({})


def read_trees(text: str) -> list[Node]:
    """Parse each document.

    Raises:
        ruamel.yaml.error.YAMLError: the text is not YAML.
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
            key, key_start = str(getattr(last, "value", "")), last.start_mark.index
            key_end = _node(text, last, events).end
            value = _node(text, next(events), events)
            if value.start == value.end:  # an empty value, for which the library reports the start of the next token
                colon = text.index(":", key_end) + 1
                value = Node(colon, colon)
            members[key] = (key_start, value)
            last = next(events)
        end = last.end_mark.index if event.flow_style else max([end, *(value.end for _, value in members.values())])
        return Node(start, end, bool(event.flow_style), (), members)
    if isinstance(event, ScalarEvent) and event.style in BLOCK_SCALARS:
        end -= text.endswith("\n", start, end)  # the final line break belongs to the line, not to the value
        end -= text.endswith("\r", start, end)
    return Node(start, end)
