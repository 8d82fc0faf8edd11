"""Renders new parts of a manifest in the style of the surrounding text. Pure."""

from __future__ import annotations

import json
import re
from io import StringIO
from textwrap import dedent
from typing import TYPE_CHECKING, Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import DoubleQuotedScalarString, LiteralScalarString, SingleQuotedScalarString

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.kubernetes.inject.tree import Node

# Scalars that are strings in every YAML version; others are quoted. Kubernetes reads a mixture of YAML 1.1 and 1.2.
PLAIN = re.compile(r"-{0,2}[A-Za-z/](?:[A-Za-z0-9._/@:-]*[A-Za-z0-9._/@-])?")
NOT_STRINGS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
NO_WRAP = 1 << 30


class Style(NamedTuple):
    """The indentation of a document, in columns.

    Attributes:
        mapping: from a key to the keys below it.
        dash: from a key to the dashes below it.
    """

    mapping: int = 2
    dash: int = 0

    @classmethod
    def of(cls, text: str, tree: Node) -> Style:
        """Detect a document's style: that of its containers, else of its first collections."""
        mappings = [width for key, width, is_list in _indents(text, tree) if not is_list]
        dashes = {key: width for key, width, is_list in _indents(text, tree) if is_list}
        dash = dashes.get("containers", next(iter(dashes.values()), 0))
        return cls(mappings[0] if mappings else 2, dash)


def column(text: str, position: int) -> int:
    """Return the column of a position."""
    return position - (text.rfind("\n", 0, position) + 1)


def block_lines(value: dict[str, Any] | list[Any], style: Style) -> list[str]:
    """Render members of a mapping or items of a sequence as unindented lines in block style."""
    writer = YAML()
    writer.width = NO_WRAP
    writer.indent(mapping=style.mapping, sequence=style.dash + 2, offset=style.dash)
    stream = StringIO()
    writer.dump(_quoted(value), stream)
    return dedent(stream.getvalue()).splitlines()


def flow_text(value: Any, unit: str | None) -> str:
    """Render a value as JSON, on one line or with each level indented by `unit`."""
    return json.dumps(value, indent=unit, ensure_ascii=False)


def _quoted(value: Any) -> Any:
    """Choose the quoting of each string."""
    if isinstance(value, dict):
        return {key: _quoted(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_quoted(one) for one in value]
    if not isinstance(value, str) or (PLAIN.fullmatch(value) and value.lower() not in NOT_STRINGS):
        return value
    if value.isascii() and value.replace("\n", "").isprintable():
        if value.endswith("\n") and value.strip() and not value.startswith(("\n", " ")):
            return LiteralScalarString(value)
        if '"' in value and "\n" not in value:
            return SingleQuotedScalarString(value)
    return DoubleQuotedScalarString(value)


def _indents(text: str, tree: Node) -> Iterator[tuple[str, int, bool]]:
    """List the keys with a nested block collection, its relative indentation, and whether it is a list."""
    for key, (start, value) in tree.members.items():
        if not tree.flow and not value.flow and (value.items or value.members):
            yield key, column(text, value.start) - column(text, start), bool(value.items)
        yield from _indents(text, value)
    for item in tree.items:
        yield from _indents(text, item)
