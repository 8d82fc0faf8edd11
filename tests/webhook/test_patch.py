"""Differences between JSON values; an established library applies them."""

from __future__ import annotations

import copy
import json
from typing import Any

import jsonpatch
import pytest
from hypothesis import given
from hypothesis import strategies as st

from istio_init.kubernetes.webhook.patch import difference

NAMES = st.sampled_from(["a", "b", "", "/", "~", "~1", "a/b~0", "-", "0"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2) | st.sampled_from([0.0, 1.0, "", "1", "é"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=15,
)


def as_text(value: object) -> str:
    return json.dumps(value, sort_keys=True)


@given(VALUES, VALUES)
def test_the_patch_makes_one_value_of_the_other(old: object, new: object) -> None:
    before = copy.deepcopy(old)
    patch = list(difference(old, new))
    assert as_text(
        jsonpatch.apply_patch({"whole": old}, [{**one, "path": f"/whole{one['path']}"} for one in patch])
    ) == as_text({"whole": new})
    assert as_text(old) == as_text(before)


@given(VALUES)
def test_the_same_value_needs_no_patch(value: object) -> None:
    assert list(difference(value, copy.deepcopy(value))) == []


@given(st.lists(VALUES, max_size=4), st.data())
def test_insertions_leave_the_other_items_alone(old: list[Any], data: st.DataObject) -> None:
    new = list(old)
    for _ in range(data.draw(st.integers(0, 3))):
        new.insert(data.draw(st.integers(0, len(new))), {"new": True})
    patch = list(difference({"list": old}, {"list": new}))
    assert [one["op"] for one in patch] == ["add"] * (len(new) - len(old))


@pytest.mark.parametrize(
    ("old", "new", "patch"),
    [
        ({}, {"a": None}, [{"op": "add", "path": "/a", "value": None}]),
        ({"a": 1}, {}, [{"op": "remove", "path": "/a"}]),
        ({"a": 1}, {"a": True}, [{"op": "replace", "path": "/a", "value": True}]),
        ({"a/b": {"~": 1}}, {"a/b": {"~": 2}}, [{"op": "replace", "path": "/a~1b/~0", "value": 2}]),
        ([1, 2], [1, 3, 2], [{"op": "add", "path": "/1", "value": 3}]),
        ([1, 2], [0, 1, 2, 4], [{"op": "add", "path": "/0", "value": 0}, {"op": "add", "path": "/3", "value": 4}]),
        ([1, 2], [2, 1], [{"op": "replace", "path": "", "value": [2, 1]}]),
        ([{"a": 1, "b": 2}], [{"b": 2, "a": 1}], []),
    ],
)
def test_a_patch_is_as_one_would_write_it(old: object, new: object, patch: list[object]) -> None:
    assert list(difference(old, new)) == patch
