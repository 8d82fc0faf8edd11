"""How much of `rules/kernel`, which changes the machine, do the tests run that are meant for it?

Only while such a test runs is anything measured, so that the others, most of which run whole programs, take no longer.
"""

from __future__ import annotations

import os
import pkgutil
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

import pytest
from coverage import Coverage

from istio_init.rules import kernel
from tests.netns import program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_exit = os._exit

FILES = (
    "tests/contract/",
    *(f"tests/unit/test_{name}.py" for name in ("ahead", "cli_apply", "engine", "host", "iptc_library", "libiptc")),
    *(f"tests/unit/test_{name}.py" for name in ("missing_parts", "netlink", "remedies", "surroundings")),
    *(f"tests/netns/test_{name}.py" for name in ("foreign_nft", "handover", "host", "jump", "network_namespace", "others")),
    *(f"tests/netns/test_{name}.py" for name in ("rtnetlink", "rules_ahead", "unreadable", "variants")),
)
CASE_TABLES = "each_case"  # these tests run no other lines than the rest, and as long


def measure_this_fork() -> None:
    """Measure the process, which is a fork, from here to its end."""
    coverage = Coverage()
    os._exit = _saved_first(coverage)  # type: ignore[assignment] # nobody names its argument
    coverage.start()


def _saved_first(coverage: Coverage) -> Callable[[int], NoReturn]:
    """Give an `os._exit` that saves what was measured, of which nothing else would be left."""

    def save_and_exit(status: int) -> NoReturn:
        coverage.save()
        _exit(status)

    return save_and_exit


class Measurement:
    """Measures in one process that runs tests."""

    def __init__(self) -> None:
        self._coverage = Coverage()
        self._coverage.start()
        for module in pkgutil.iter_modules(kernel.__path__, f"{kernel.__name__}."):
            import_module(module.name)  # which runs lines, too
        self._coverage.stop()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        if not item.nodeid.startswith(FILES) or CASE_TABLES in item.nodeid:
            return (yield)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "_exit", _saved_first(self._coverage))
            patch.setattr(program, "is_measured", True)
            self._coverage.start()
            try:
                return (yield)
            finally:
                self._coverage.stop()

    def pytest_sessionfinish(self) -> None:
        self._coverage.save()
