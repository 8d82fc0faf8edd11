"""Edits a manifest's text only where its data changes, so that additions can be removed again byte for byte. Pure.

A round trip through ruamel.yaml keeps comments and order, but reformats line wrapping, spacing and indentation. Therefore
ruamel.yaml is only used to locate existing parts and to render new ones; the rest of the text is left untouched.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer as YamlComposer
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import YAMLError

from istio_init.core.errors import InvalidInput
from istio_init.core.limits import MAX_DEPTH, TOO_DEEP, check_aliases, check_depth, check_digits, counted, read_json
from istio_init.kubernetes.inject.splice import Splicer, Unwritable
from istio_init.kubernetes.inject.tree import read_trees

if TYPE_CHECKING:
    from collections.abc import Callable

    Change = Callable[[Any, str], tuple[Any, tuple[str, ...]]]

ALLOWED = f"YAML or JSON of at most {MAX_DEPTH} levels"
# The parser's errors, and what constructors of scalar values can raise.
UNREADABLE = (YAMLError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class Composer(YamlComposer):
    """Makes nodes of plain YAML, but not any number of them."""

    def __init__(self, loader: Any = None) -> None:
        super().__init__(loader)
        self.warn_double_anchors = False  # YAML allows them, and a warning would be several lines of Python's
        self.values = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Make a node."""
        self.values = counted(self.values)
        return super().compose_node(parent, index)


class Constructor(SafeConstructor):
    """Makes the values of plain YAML, but no integers of any length."""

    def construct_yaml_int(self, node: Any) -> int:
        """Make an integer."""
        check_digits(node.value)
        value: int = super().construct_yaml_int(node)
        return value


Constructor.add_constructor("tag:yaml.org,2002:int", Constructor.construct_yaml_int)


def rewrite(text: str, where: str, change: Change) -> tuple[str, tuple[str, ...]]:
    """Change each document of a text.

    Args:
        text: a stream of YAML documents, or JSON.
        where: the file, for errors.
        change: maps a document and its location to the new document and notes.

    Returns:
        The new text, and all notes.

    Raises:
        InvalidInput: the text is neither YAML nor JSON, `change` rejects it, or the change cannot be expressed as edits.
    """
    byte_order_mark, body = text[: text.startswith("\ufeff")], text.removeprefix("\ufeff")
    is_json, documents = _read(body, where)
    places = [where] if len(documents) == 1 else [f"{where}: document {index + 1}" for index in range(len(documents))]
    changed = [change(document, place) for document, place in zip(documents, places, strict=True)]
    after = [document for document, _ in changed]
    notes = tuple(note for _, lines in changed for note in lines)
    if after == documents:
        return text, notes
    result = _spliced(body, documents, after, where, is_json=is_json)
    return byte_order_mark + result, notes


def _read(text: str, where: str) -> tuple[bool, list[Any]]:
    """Parse the documents; also return whether the text is JSON."""
    try:
        return _parse(text)
    except RecursionError:
        raise InvalidInput(where, TOO_DEEP, ALLOWED) from None
    except UNREADABLE as error:
        raise InvalidInput(where, f"not valid YAML: {error}", ALLOWED) from None


def _parse(text: str) -> tuple[bool, list[Any]]:
    with suppress(json.JSONDecodeError):
        return True, [read_json(text)]
    if "&" in text and "*" in text:  # without an anchor and an alias there is nothing to expand
        check_aliases(YAML(typ="safe", pure=True).parse(text))
    parser = YAML(typ="safe", pure=True)
    parser.Composer, parser.Constructor = Composer, Constructor
    documents = list(parser.load_all(text))
    for document in documents:
        check_depth(document)
    return False, documents


def _spliced(text: str, before: list[Any], after: list[Any], where: str, *, is_json: bool) -> str:
    try:
        # YAML does not allow tabs as separators; valid JSON has them nowhere else.
        trees = read_trees(text.replace("\t", " ") if is_json else text)
        splicer = Splicer(text)
        for tree, old, new in zip(trees, before, after, strict=True):
            splicer.change(tree, old, new)
        result = splicer.result()
        if _read(result, where)[1] == after:
            return result
    except (*UNREADABLE, Unwritable, InvalidInput):
        pass
    problem = "the change cannot be made without reformatting other parts of this text"
    raise InvalidInput(where, problem, "a pod without YAML anchors, aliases, merge keys or tags")
