"""One contract over the standard library's classes and the stand-ins that are quick to import."""

from __future__ import annotations

import contextlib
import copy
import enum
import json
import os
import pickle
import subprocess
import sys
import typing
from typing import Any

import pytest

from istio_init.core import light

if typing.TYPE_CHECKING:
    from collections.abc import Iterator


class RealPoint(typing.NamedTuple):
    x: int
    y: tuple[str, ...] = ()
    z: RealPoint | None = None

    @property
    def double(self) -> int:
        return self.x * 2


class LightPoint(light.NamedTuple):
    x: int
    y: tuple[str, ...] = ()
    z: LightPoint | None = None

    @property
    def double(self) -> int:
        return self.x * 2


class RealColour(enum.StrEnum):
    RED = "red"
    DEEP_BLUE = "deep-blue"

    @property
    def loud(self) -> str:
        return self.value.upper()


class LightColour(light.StrEnum):
    RED = "red"
    DEEP_BLUE = "deep-blue"

    @property
    def loud(self) -> str:
        return self.value.upper()


class RealSize(enum.IntEnum):
    SMALL = 1
    LARGE = 20


class LightSize(light.IntEnum):
    SMALL = 1
    LARGE = 20


Any_ = Any
points = pytest.mark.parametrize("point", [RealPoint, LightPoint])
colours = pytest.mark.parametrize("colour", [RealColour, LightColour])
sizes = pytest.mark.parametrize("size", [RealSize, LightSize])


@points
def test_a_named_tuple_is_made_of_values_names_and_defaults(point: Any) -> None:
    assert point(1) == point(x=1) == (1, (), None)
    assert point(1, ("a",), z=point(2)) == (1, ("a",), (2, (), None))
    assert (point(3).x, point(3).y, point(3).double) == (3, (), 6)
    assert point._fields == ("x", "y", "z")
    assert point._field_defaults == {"y": (), "z": None}
    assert point._make([1, 2, 3]) == (1, 2, 3)
    assert isinstance(point(1), tuple)


@points
@pytest.mark.parametrize(
    ("values", "named"), [((), {}), ((1, 2, 3, 4), {}), ((1,), {"x": 1}), ((1,), {"w": 1}), ((), {"y": ()})]
)
def test_a_named_tuple_refuses_what_does_not_fit(point: Any, values: Any, named: Any) -> None:
    with pytest.raises(TypeError):
        point(*values, **named)


@points
def test_a_named_tuple_is_changed_shown_hashed_and_copied_by_value(point: Any) -> None:
    one = point(1, ("a",))
    assert one._replace(x=5) == (5, ("a",), None)
    assert type(one._replace(x=5)) is point
    with pytest.raises((ValueError, TypeError)):
        one._replace(w=5)
    with pytest.raises(AttributeError):
        one.x = 2
    with pytest.raises(AttributeError):
        one.other = 2
    assert one._asdict() == {"x": 1, "y": ("a",), "z": None}
    assert repr(one) == f"{point.__name__}(x=1, y=('a',), z=None)"
    assert hash(one) == hash((1, ("a",), None))
    for twin in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):  # noqa: S301 - our own
        assert (twin, type(twin)) == (one, point)


@points
def test_a_named_tuple_is_matched_by_position(point: Any) -> None:
    match point(7, ("b",)):
        case point(x, ("b",)):
            assert x == 7
        case _:
            pytest.fail("it did not match")


@pytest.mark.parametrize("base", [typing.NamedTuple, light.NamedTuple])
def test_a_field_without_a_default_cannot_follow_one_that_has_it(base: Any) -> None:
    with pytest.raises(TypeError):
        exec("class Bad(base):\n x: int = 1\n y: int", {"base": base})  # noqa: S102 - a class statement


@colours
def test_members_that_are_text_are_found_listed_and_shown(colour: Any) -> None:
    assert list(colour) == ["red", "deep-blue"]
    assert len(colour) == 2
    assert colour("red") is colour.RED is colour["RED"]
    assert list(colour.__members__) == ["RED", "DEEP_BLUE"]
    assert colour.RED in colour
    assert (colour.RED.name, colour.RED.value, type(colour.RED.value)) == ("RED", "red", str)
    assert (str(colour.RED), f"{colour.RED:>4}", "-" + colour.RED) == ("red", " red", "-red")
    assert repr(colour.DEEP_BLUE) == f"<{colour.__name__}.DEEP_BLUE: 'deep-blue'>"
    assert isinstance(colour.RED, colour)
    assert isinstance(colour.RED, str)
    assert [one.loud for one in colour] == ["RED", "DEEP-BLUE"]
    assert json.dumps({colour.RED: colour.RED}) == '{"red": "red"}'


@colours
@pytest.mark.parametrize("value", ["RED", "", None, 1, []])
def test_no_member_is_made_of_another_value(colour: Any, value: Any) -> None:
    with pytest.raises(ValueError, match=f"is not a valid {colour.__name__}"):
        colour(value)


@colours
def test_no_member_is_found_by_another_name(colour: Any) -> None:
    with pytest.raises(KeyError):
        colour["red"]


@pytest.mark.parametrize("member", [RealColour.RED, LightColour.RED, RealSize.LARGE, LightSize.LARGE])
def test_a_member_stays_the_same_object_when_it_is_copied(member: Any) -> None:
    assert copy.copy(member) is copy.deepcopy(member) is pickle.loads(pickle.dumps(member)) is member  # noqa: S301
    assert {member: 1}[member.value] == 1


@colours
def test_a_member_is_matched_as_a_value(colour: Any) -> None:
    match colour("red"):
        case colour.DEEP_BLUE:
            pytest.fail("it matched another one")
        case colour.RED:
            pass
        case _:
            pytest.fail("it did not match")


@sizes
def test_members_that_are_numbers_count_and_are_shown(size: Any) -> None:
    assert list(size) == [1, 20]
    assert size.SMALL < size.LARGE
    assert size(20) is size.LARGE
    assert (str(size.LARGE), f"{size.LARGE:03}", size.LARGE.name, size.LARGE.value) == ("20", "020", "LARGE", 20)
    assert repr(size.SMALL) == f"<{size.__name__}.SMALL: 1>"


contexts = pytest.mark.parametrize("contextmanager", [contextlib.contextmanager, light.contextmanager])


def _context(contextmanager: Any, told: list[str], end: str = "raise") -> Any:
    class Home:
        @contextmanager  # type: ignore[untyped-decorator] # one of two
        def around(self, value: int) -> Iterator[int]:
            told.append("before")
            try:
                yield value
            except OSError as error:
                told.append(f"caught {error}")
                if end == "raise":
                    raise
                if end == "replace":
                    raise ValueError("another") from error
            finally:
                told.append("after")
            if end == "go on":
                yield 0

    return Home().around(7)


@contexts
def test_a_context_has_a_value_a_beginning_and_an_end(contextmanager: Any) -> None:
    told: list[str] = []
    with _context(contextmanager, told) as value:
        told.append(f"block {value}")
    assert told == ["before", "block 7", "after"]


@contexts
def test_a_context_sees_the_error_of_its_block(contextmanager: Any) -> None:
    told: list[str] = []
    error = OSError("oh")
    with pytest.raises(OSError, match="oh") as raised, _context(contextmanager, told):
        raise error
    assert raised.value is error
    with pytest.raises(ValueError, match="another"), _context(contextmanager, told, "replace"):
        raise error
    with _context(contextmanager, told, "swallow"):
        raise error
    with pytest.raises(KeyError), _context(contextmanager, told):
        raise KeyError
    assert told == ["before", "caught oh", "after"] * 3 + ["before", "after"]


@contexts
def test_a_context_that_goes_on_after_its_block_is_an_error(contextmanager: Any) -> None:
    with pytest.raises(RuntimeError), _context(contextmanager, [], "go on"):
        pass


def test_importing_the_stand_ins_imports_nothing_that_they_stand_for() -> None:
    program = "import sys, istio_init.core.light; print(*sys.modules)"
    imported = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {os.getcwd()!r}); {program}"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    assert "istio_init.core.light" in imported
    assert not {"typing", "enum", "contextlib", "signal", "re", "functools", "collections"}.intersection(imported)
