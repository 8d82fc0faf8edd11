"""Options and fixtures for all tests."""

from __future__ import annotations

import signal
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    import pytest
    from xdist.remote import Producer

# Tests that run many programs each, look at the whole machine before and after, or share a fixture that is dear to make.
TOGETHER = {
    "lab": "machine",
    "test_demo.py": "machine",
    "test_readme.py": "machine",
    "envoy": "envoy",
    "webhook": "webhook",
}


class Scheduling(LoadScopeScheduling):  # type: ignore[misc] # it has no types
    """Where tests run side by side, those that must not meet others of their kind run one after another."""

    def _split_scope(self, nodeid: str) -> str:
        return TOGETHER.get(PurePosixPath(nodeid.partition("::")[0]).parts[1], nodeid)


def pytest_configure() -> None:
    """Let what tests start have the signals that it has in a terminal.

    Under nohup, as a background job and in some CI runners, these two are ignored, and what is ignored stays so in every
    program that is started (signal(7)); a shell cannot even trap it then. What is caught does not. It is still without
    effect here.
    """
    for number in (signal.SIGHUP, signal.SIGINT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-goldens", action="store_true", help="write the golden files anew instead of comparing")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    return Scheduling(config, log)
