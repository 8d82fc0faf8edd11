"""One check over many values as one test, which shows every value that fails.

`pytest.mark.parametrize` makes a test of each value; that is right where each needs fixtures of its own. Where the check
is one and the values are many files or cases, a sweep takes less time and shows as much.
"""

from __future__ import annotations

import inspect
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import pytest

    Test = Callable[..., None]

KEPT = ("__module__", "__name__", "__qualname__", "__doc__", "pytestmark")


class Row(NamedTuple):
    """What one call is given, and the text that its failure is shown with."""

    given: dict[str, Any]
    label: str


def sweep(
    names: str | tuple[str, ...], values: Iterable[Any], ids: Iterable[str] | Callable[[Any], str] | None = None
) -> Callable[[Test], Test]:
    """Call a test function for each of the values, as one test; it is written as `pytest.mark.parametrize` is.

    Each failure is shown as a subtest, with its own traceback. Two sweeps over one function combine their values. The
    fixtures of the function are shared by all calls.

    Args:
        names: the parameter, or several, which then take a tuple of values each.
        values: what they take; at least one.
        ids: the text that each failure is shown with, or a function that makes it of the values.
    """
    outer = _rows(names, list(values), ids)

    def decorate(function: Test) -> Test:
        check, inner = getattr(function, "swept", (function, [Row({}, "")]))
        rows = [Row(a.given | b.given, f"{b.label}-{a.label}".strip("-")) for a in outer for b in inner]

        def test(subtests: pytest.Subtests, **fixtures: Any) -> None:
            __tracebackhide__ = True
            for row in rows:
                try:
                    check(**row.given, **fixtures)
                except Exception:
                    with subtests.test(row.label):
                        raise

        test.swept = (check, rows)  # type: ignore[attr-defined] # for another sweep over this one
        test.__signature__ = _signature(check, rows[0].given)  # type: ignore[attr-defined] # pytest reads it
        for attribute in KEPT:
            with suppress(AttributeError):
                setattr(test, attribute, getattr(function, attribute))
        return test

    return decorate


def _rows(names: str | tuple[str, ...], values: list[Any], ids: Iterable[str] | Callable[[Any], str] | None) -> list[Row]:
    assert values, "a sweep over nothing shows nothing"
    given = [{names: one} if isinstance(names, str) else dict(zip(names, one, strict=True)) for one in values]
    if ids is None:
        labels = ["-".join(map(str, one.values())) for one in given]
    else:
        labels = [ids(one) for one in values] if callable(ids) else list(ids)
    return [Row(*row) for row in zip(given, labels, strict=True)]


def _signature(check: Test, given: dict[str, Any]) -> inspect.Signature:
    """Give the fixtures that a check asks for, and the one that shows failures."""
    of_check = inspect.signature(check)
    fixtures = [one for name, one in of_check.parameters.items() if name not in given]
    subtests = inspect.Parameter("subtests", inspect.Parameter.KEYWORD_ONLY)
    return of_check.replace(parameters=[*fixtures, subtests])
