"""Applies a change of a document's data to its text, by adding and removing whole members and items. Pure."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from istio_init.kubernetes.inject.fragments import Style, block_lines, column, flow_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from istio_init.kubernetes.inject.tree import Node


class Unwritable(Exception):
    """A change cannot be expressed as edits of this text."""


class Edit(NamedTuple):
    """A replacement of the text from `start` up to, but excluding, `end`."""

    start: int
    end: int
    text: str


class Location(NamedTuple):
    """The location of a value in the text.

    Attributes:
        node: the value.
        key: the start of the key of its member.
        in_flow: whether the member is in flow style.
    """

    node: Node
    key: int = 0
    in_flow: bool = False


class Splicer:
    """Collects the edits of a text.

    Args:
        text: the text.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._newline = "\r\n" if "\r\n" in text else "\n"
        self._edits: list[Edit] = []
        self._style = Style()

    def change(self, tree: Node, old: Any, new: Any) -> None:
        """Add the edits for a change of one document.

        Raises:
            Unwritable: the change is not limited to whole members and items.
        """
        self._style = Style.of(self._text, tree)
        self._value(Location(tree), old, new)

    def result(self) -> str:
        """Return the text with all edits applied.

        Raises:
            Unwritable: two edits overlap.
        """
        edits = sorted(self._edits)
        if any(one.end > other.start for one, other in pairwise(edits)):
            raise Unwritable
        text, position = "", 0
        for edit in edits:
            text += self._text[position : edit.start] + edit.text
            position = edit.end
        return text + self._text[position:]

    def _value(self, location: Location, old: Any, new: Any) -> None:
        if old == new:
            return
        if old and new and isinstance(old, dict) and isinstance(new, dict):
            self._mapping(location, old, new)
        elif old and new and isinstance(old, list) and isinstance(new, list):
            self._sequence(location, old, new)
        elif not old and new:
            self._fill(location, old, new)
        elif old and not new:
            self._empty(location, new)
        else:
            raise Unwritable

    def _mapping(self, location: Location, old: dict[str, Any], new: dict[str, Any]) -> None:
        members = location.node.members
        if not set(old) <= set(members):  # a merge key adds members that are defined elsewhere
            raise Unwritable
        for key in old.keys() & new.keys():
            start, value = members[key]
            self._value(Location(value, start, location.node.flow), old[key], new[key])
        self._remove(location.node, [index for index, key in enumerate(members) if key not in new])
        added = {key: value for key, value in new.items() if key not in old}
        if added:
            self._add(location, added, first=False)

    def _sequence(self, location: Location, old: list[Any], new: list[Any]) -> None:
        items = location.node.items
        if len(items) != len(old):
            raise Unwritable
        if len(old) == len(new):
            for item, before, after in zip(items, old, new, strict=True):
                self._value(Location(item, item.start, location.node.flow), before, after)
        elif new[: len(old)] == old:
            self._add(location, new[len(old) :], first=False)
        elif new[-len(old) :] == old:
            self._add(location, new[: -len(old)], first=True)
        else:
            self._remove(location.node, _missing(old, new))

    def _fill(self, location: Location, old: Any, new: Any) -> None:
        """Add to a missing or empty value."""
        node = location.node
        if old is not None:
            self._add(location, new, first=False)  # between the brackets
        elif node.start < node.end:
            self._edits.append(Edit(node.start, node.end, flow_text(new, None)))
        elif location.in_flow:
            self._edits.append(Edit(node.end, node.end, f" {flow_text(new, None)}"))
        else:
            below = self._style.dash if isinstance(new, list) else self._style.mapping
            self._add_lines(node.end, column(self._text, location.key) + below, new)

    def _empty(self, location: Location, new: Any) -> None:
        """Remove everything, leaving nothing, a null or empty brackets."""
        node = location.node
        if node.flow and new is None:
            self._edits.append(Edit(node.start, node.end, "null"))
            return
        self._remove(node, range(len(node.items or node.members)))
        if not node.flow and new is not None:
            colon = self._text.index(":", location.key) + 1
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
            elif kept_before is not None:  # including the preceding comma
                self._edits.append(Edit(spans[index - 1][1], end, ""))
            elif index + 1 < len(spans):  # including the following comma
                self._edits.append(Edit(start, spans[index + 1][0], ""))
            else:
                self._edits.append(Edit(start, end, ""))

    def _spans(self, node: Node) -> list[tuple[int, int]]:
        """Return the start and end of each member or item; in block style, an item starts with its dash."""
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

    def _add(self, location: Location, new: Any, *, first: bool) -> None:
        """Add members to a mapping or items to a sequence, before or after the existing ones."""
        node = location.node
        if node.flow:
            self._add_in_brackets(node, new, first=first)
        elif first:
            self._add_lines(
                location.key, column(self._text, node.start), new
            )  # above comments, which belong to the existing items
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
        """Return the leading white space of a position's line."""
        line = self._text[position - column(self._text, position) :].partition("\n")[0]
        return line[: len(line) - len(line.lstrip())]

    def _end_of_line(self, position: int) -> int:
        """Return the end of a position's line, excluding the line break."""
        end = self._text.find("\n", position)
        if end < 0:
            return len(self._text)
        return end - self._text.endswith("\r", position, end)

    def _end_of_line_before(self, position: int) -> int:
        start = position - column(self._text, position)
        if self._text[start:position].strip():
            raise Unwritable  # there is something else on the same line
        return start - 1 - self._text.endswith("\r", 0, start - 1)


def _missing(old: list[Any], new: list[Any]) -> list[int]:
    """Return the indexes of the items that `new`, a subsequence of `old`, lacks."""
    missing, found = [], 0
    for index, item in enumerate(old):
        if found < len(new) and new[found] == item:
            found += 1
        else:
            missing.append(index)
    if found < len(new):
        raise Unwritable
    return missing
