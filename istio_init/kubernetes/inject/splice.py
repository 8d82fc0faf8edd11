"""Edits of a text that bring its data from one state to another, by adding and removing whole members and items. Pure."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from istio_init.kubernetes.inject.fragments import Style, block_lines, column, flow_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from istio_init.kubernetes.inject.tree import Node


class Unwritable(Exception):
    """A change cannot be written into this text."""


class Edit(NamedTuple):
    """Text that takes the place of what stands from `start` to before `end`."""

    start: int
    end: int
    text: str


class Place(NamedTuple):
    """A value, and the member that it is of.

    Attributes:
        node: the value.
        key: where the member's key begins.
        in_flow: whether the member stands in brackets.
    """

    node: Node
    key: int = 0
    in_flow: bool = False


class Splicer:
    """Collects edits of one text.

    Args:
        text: the text.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._newline = "\r\n" if "\r\n" in text else "\n"
        self._edits: list[Edit] = []
        self._style = Style()

    def change(self, tree: Node, old: Any, new: Any) -> None:
        """Bring a document from one state to another.

        Raises:
            Unwritable: it cannot be done with whole members and items.
        """
        self._style = Style.of(self._text, tree)
        self._value(Place(tree), old, new)

    def result(self) -> str:
        """Give the text with all edits.

        Raises:
            Unwritable: two edits meet.
        """
        edits = sorted(self._edits)
        if any(one.end > other.start for one, other in pairwise(edits)):
            raise Unwritable
        text, position = "", 0
        for edit in edits:
            text += self._text[position : edit.start] + edit.text
            position = edit.end
        return text + self._text[position:]

    def _value(self, place: Place, old: Any, new: Any) -> None:
        if old == new:
            return
        if old and new and isinstance(old, dict) and isinstance(new, dict):
            self._mapping(place, old, new)
        elif old and new and isinstance(old, list) and isinstance(new, list):
            self._sequence(place, old, new)
        elif not old and new:
            self._fill(place, old, new)
        elif old and not new:
            self._empty(place, new)
        else:
            raise Unwritable

    def _mapping(self, place: Place, old: dict[str, Any], new: dict[str, Any]) -> None:
        members = place.node.members
        if not set(old) <= set(members):  # a merge key brings members that stand elsewhere
            raise Unwritable
        for key in old.keys() & new.keys():
            start, value = members[key]
            self._value(Place(value, start, place.node.flow), old[key], new[key])
        self._remove(place.node, [index for index, key in enumerate(members) if key not in new])
        added = {key: value for key, value in new.items() if key not in old}
        if added:
            self._add(place, added, first=False)

    def _sequence(self, place: Place, old: list[Any], new: list[Any]) -> None:
        items = place.node.items
        if len(items) != len(old):
            raise Unwritable
        if len(old) == len(new):
            for item, before, after in zip(items, old, new, strict=True):
                self._value(Place(item, item.start, place.node.flow), before, after)
        elif new[: len(old)] == old:
            self._add(place, new[len(old) :], first=False)
        elif new[-len(old) :] == old:
            self._add(place, new[: -len(old)], first=True)
        else:
            self._remove(place.node, _missing(old, new))

    def _fill(self, place: Place, old: Any, new: Any) -> None:
        """Write into what is empty."""
        node = place.node
        if old is not None:
            self._add(place, new, first=False)  # between the brackets
        elif node.start < node.end:
            self._edits.append(Edit(node.start, node.end, flow_text(new, None)))
        elif place.in_flow:
            self._edits.append(Edit(node.end, node.end, f" {flow_text(new, None)}"))
        else:
            below = self._style.dash if isinstance(new, list) else self._style.mapping
            self._add_lines(node.end, column(self._text, place.key) + below, new)

    def _empty(self, place: Place, new: Any) -> None:
        """Leave nothing, a null or brackets."""
        node = place.node
        if node.flow and new is None:
            self._edits.append(Edit(node.start, node.end, "null"))
            return
        self._remove(node, range(len(node.items or node.members)))
        if not node.flow and new is not None:
            colon = self._text.index(":", place.key) + 1
            self._edits.append(Edit(colon, colon, f" {flow_text(new, None)}"))

    def _remove(self, node: Node, indexes: Sequence[int]) -> None:
        spans = self._spans(node)
        gone = [index in indexes for index in range(len(spans))]
        kept_before = None
        for index, (start, end) in enumerate(spans):
            if not gone[index]:
                kept_before = index
            elif not node.flow:
                self._edits.append(Edit(self._end_of_line_before(start), self._end_of_line(end), ""))
            elif kept_before is not None:  # with the comma before it
                self._edits.append(Edit(spans[index - 1][1], end, ""))
            elif index + 1 < len(spans):  # with the comma behind it
                self._edits.append(Edit(start, spans[index + 1][0], ""))
            else:
                self._edits.append(Edit(start, end, ""))

    def _spans(self, node: Node) -> list[tuple[int, int]]:
        """Give where each member or item begins and ends; an item of a block begins with its dash."""
        if node.members:
            return [(start, value.end) for start, value in node.members.values()]
        if node.flow:
            return [(item.start, item.end) for item in node.items]
        return [(self._dash(node, item), item.end) for item in node.items]

    def _dash(self, node: Node, item: Node) -> int:
        at, width = item.start, column(self._text, node.start)
        while at > node.start:
            line = at - column(self._text, at)
            if self._text[line : line + width + 1].lstrip() == "-":
                return line + width
            at = line - 1
        return node.start

    def _add(self, place: Place, new: Any, *, first: bool) -> None:
        """Add members to a mapping, or items to a sequence, before or behind those that it has."""
        node = place.node
        if node.flow:
            self._add_in_brackets(node, new, first=first)
        elif first:
            self._add_lines(place.key, column(self._text, node.start), new)  # above comments, which are the old ones'
        else:
            self._add_lines(node.end, column(self._text, node.start), new)

    def _add_lines(self, position: int, indent: int, new: Any) -> None:
        lines = [f"{' ' * indent}{line}" for line in block_lines(new, self._style)]
        at = self._end_of_line(position)
        self._edits.append(Edit(at, at, "".join(f"{self._newline}{line}" for line in lines)))

    def _add_in_brackets(self, node: Node, new: Any, *, first: bool) -> None:
        spans = self._spans(node)
        inner = self._margin(spans[-1][0]) if spans else ""
        tall = bool(spans) and "\n" in self._text[node.start : spans[-1][0]]
        unit = inner.removeprefix(self._margin(node.start)) if tall else None
        parts = [flow_text(one, unit) for one in new] if isinstance(new, list) else []
        if isinstance(new, dict):
            parts = [f"{flow_text(key, None)}: {flow_text(value, unit)}" for key, value in new.items()]
        separator = f",{self._newline}{inner}" if tall else ", "
        written = separator.join(part.replace("\n", f"{self._newline}{inner}") for part in parts)
        if not spans:
            self._edits.append(Edit(node.start + 1, node.start + 1, written))
        elif first:
            self._edits.append(Edit(spans[0][0], spans[0][0], f"{written}{separator}"))
        else:
            self._edits.append(Edit(spans[-1][1], spans[-1][1], f"{separator}{written}"))

    def _margin(self, position: int) -> str:
        """Give the white space that a position's line begins with."""
        line = self._text[position - column(self._text, position) :].partition("\n")[0]
        return line[: len(line) - len(line.lstrip())]

    def _end_of_line(self, position: int) -> int:
        """Find where a line ends, its line break not included."""
        end = self._text.find("\n", position)
        if end < 0:
            return len(self._text)
        return end - self._text.endswith("\r", position, end)

    def _end_of_line_before(self, position: int) -> int:
        start = position - column(self._text, position)
        if self._text[start:position].strip():
            raise Unwritable  # something else stands on the same line
        return start - 1 - self._text.endswith("\r", 0, start - 1)


def _missing(old: list[Any], new: list[Any]) -> list[int]:
    """Find which items of a list another one lacks, which has nothing else."""
    missing, found = [], 0
    for index, item in enumerate(old):
        if found < len(new) and new[found] == item:
            found += 1
        else:
            missing.append(index)
    if found < len(new):
        raise Unwritable
    return missing
