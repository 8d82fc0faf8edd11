"""Options and fixtures for all tests."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from xdist.scheduler import LoadScopeScheduling

from tests.measured import Measurement

if TYPE_CHECKING:
    import pytest
    from xdist.remote import Producer

# Tests that share a fixture which is slow to make, or what only one can have at a time: a port, the name of a lab.
TOGETHER = ("tests/envoy", "tests/webhook", "tests/lab/test_life.py", "tests/lab/test_command.py", "tests/test_readme.py")
# Tests whose fixture is made for each parameter: those of one parameter.
TOGETHER_BY_PARAMETER = ("tests/lab/test_path.py", "tests/lab/test_today.py")
# These two take longer than all others of their file, and share nothing with them.
ALONE = ("[scripts/bench ", "[python3 -m venv ")


class Scheduling(LoadScopeScheduling):  # type: ignore[misc] # it has no types
    """Where tests run side by side, those that must not meet others of their kind run one after another."""

    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith(TOGETHER_BY_PARAMETER):
            return nodeid.partition("::")[0] + nodeid.partition("[")[2]
        together = [place for place in TOGETHER if nodeid.startswith(place)]
        return together[0] if together and not any(word in nodeid for word in ALONE) else nodeid


def pytest_configure(config: pytest.Config) -> None:
    """Let what tests start have the signals that it has in a terminal.

    Under nohup, as a background job and in some CI runners, these two are ignored, and what is ignored stays so in every
    program that is started (signal(7)); a shell cannot even trap it then. What is caught does not. It is still without
    effect here.
    """
    for number in (signal.SIGHUP, signal.SIGINT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    if config.getoption("measure") and config.getoption("numprocesses") in (None, 0):
        config.pluginmanager.register(Measurement())


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--measure", action="store_true", help="measure how much of rules/kernel its tests run")
    parser.addoption("--update-goldens", action="store_true", help="write the golden files anew instead of comparing")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    return Scheduling(config, log)
