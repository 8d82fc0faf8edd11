"""What can be told of the benchmark without measuring: how peers are given, and how figures are compared."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return import_module(request.param)


@pytest.mark.parametrize("module", ["bench_programs"], indirect=True)
def test_a_peer_takes_part_in_one_scenario_with_a_command_as_it_is_given(module: ModuleType) -> None:
    peer = module.parse_peer("1.0:script=sh -c 'a = b' -x '{cidrs}' ''")
    assert peer[:2] == ("1.0", "script")
    assert peer.command.takes_cidrs
    assert peer.command.excluding("10.0.0.0/8")[1:] == ("-c", "a = b", "-x", "10.0.0.0/8", "")
    assert not module.parse_peer("today:other=true").command.takes_cidrs


@pytest.mark.parametrize(
    ("peers", "complaint"),
    [
        (["true"], "is not SCENARIO:NAME=COMMAND"),
        (["1.1:script=true"], "a scenario of today, 1.0, tproxy, clean"),
        (["today:script="], "is not SCENARIO:NAME=COMMAND"),
        (["today:script='"], "No closing quotation"),
        (["today:script=no-such-program -x"], "'no-such-program' is no program that can be run"),
        (["today:istio-init=true"], "a peer cannot be called istio-init"),
        (["today:script=true", "today:script=false"], "two peers are today:script"),
        (["clean:script=true", "today:other=true"], "clean:script has nothing to clean"),
    ],
)
def test_a_wrong_peer_is_refused_before_anything_is_measured(peers: list[str], complaint: str) -> None:
    command = [sys.executable, str(SCRIPTS / "bench"), *(word for peer in peers for word in ("--peer", peer))]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, complaint in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize("module", ["bench_runs"], indirect=True)
def test_the_longest_list_of_cidrs_fits_into_one_argument(module: ModuleType) -> None:
    cidrs = module.cidrs_of(10_000)
    assert len(set(cidrs.split(","))) == 10_000
    assert len(cidrs) < 128 * 1024


@pytest.mark.parametrize("module", ["bench_report"], indirect=True)
def test_programs_are_compared_round_by_round(module: ModuleType) -> None:
    samples, sample = module.Samples, sys.modules["bench_runs"].Sample
    ours = samples(sample(seconds, 1.0, 1, stopped=False) for seconds in (1.0, 4.0, 3.0))
    other = samples(sample(seconds, 2.0, 1, stopped=False) for seconds in (2.0, 2.0, 1.0))
    assert (module.ratio(ours, other, "wall"), module.ratio(ours, other, "cpu")) == ("2.000", "0.500")
    stopped = samples([sample(10.0, 2.0, 1, stopped=True)])
    assert module.ratio(ours, stopped, "wall") == "< 0.100"
    assert module.ratio(stopped, ours, "wall") == ""
