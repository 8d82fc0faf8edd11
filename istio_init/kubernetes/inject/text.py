"""Changes a manifest's text where its data changes, and nowhere else: what is added is removed again to the byte. Pure.

A round-trip library that writes a whole file anew keeps comments and order, but wraps lines, spaces and indents as it likes.
So here ruamel.yaml says where each part stands and writes what is new, and the rest of the text is not touched.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from istio_init.core.errors import InvalidInput
from istio_init.kubernetes.inject.splice import Splicer, Unwritable
from istio_init.kubernetes.inject.tree import read_trees

if TYPE_CHECKING:
    from collections.abc import Callable

    Change = Callable[[Any, str], tuple[Any, tuple[str, ...]]]

# What a constructor of a value raises, beside the parser's own errors.
UNREADABLE = (YAMLError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def rewrite(text: str, where: str, change: Change) -> tuple[str, tuple[str, ...]]:
    """Change each document of a text.

    Args:
        text: YAML of any number of documents, or JSON.
        where: the file.
        change: from a document and its place to what it becomes, and to notes.

    Returns:
        The text, and all notes.

    Raises:
        InvalidInput: it is neither YAML nor JSON, `change` refuses it, or a change cannot be written into it.
    """
    mark, body = text[: text.startswith("\ufeff")], text.removeprefix("\ufeff")
    is_json, documents = _read(body, where)
    places = [where] if len(documents) == 1 else [f"{where}: document {index + 1}" for index in range(len(documents))]
    changed = [change(document, place) for document, place in zip(documents, places, strict=True)]
    after = [document for document, _ in changed]
    notes = tuple(note for _, lines in changed for note in lines)
    if after == documents:
        return text, notes
    result = _spliced(body, documents, after, where, is_json=is_json)
    return mark + result, notes


def _read(text: str, where: str) -> tuple[bool, list[Any]]:
    """Give the documents, and whether they are one of JSON."""
    with suppress(ValueError, RecursionError):
        return True, [json.loads(text)]
    try:
        return False, list(YAML(typ="safe", pure=True).load_all(text))
    except UNREADABLE as error:
        raise InvalidInput(where, f"cannot be read as YAML: {error}", "YAML or JSON") from None


def _spliced(text: str, before: list[Any], after: list[Any], where: str, *, is_json: bool) -> str:
    try:
        # YAML has no tabs between its words; in JSON they stand nowhere else.
        trees = read_trees(text.replace("\t", " ") if is_json else text)
        splicer = Splicer(text)
        for tree, old, new in zip(trees, before, after, strict=True):
            splicer.change(tree, old, new)
        result = splicer.result()
        if _read(result, where)[1] == after:
            return result
    except (*UNREADABLE, Unwritable, InvalidInput):
        pass
    problem = "what has to be added cannot be written into this text without changing other parts of it"
    raise InvalidInput(where, problem, "a pod written out, without YAML's anchors, aliases, merge keys and tags around it")
