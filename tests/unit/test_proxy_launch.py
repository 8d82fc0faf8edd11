"""The life of a pod's Envoys, in a world whose every moment is written down beforehand: no process, no signal, no time."""

from __future__ import annotations

import signal
from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import TYPE_CHECKING, NamedTuple

import pytest

from istio_init.core.errors import ChildFailed, InvalidInput
from istio_init.core.processes import WAKE_UP, ExitedChild
from istio_init.sidecar.launcher.admin import Unreachable
from istio_init.sidecar.launcher.launch import LaunchConfig, Launcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DRAIN = 45.0
FIRST_PID = 100
TRIES = (0.0, 0.2, 0.6, 1.4, 3.0, 6.2, 12.6, 25.4, 51.0, 102.2)  # when each of ten is made: 0.2, 0.4, 0.8 s … between them
TERM, INT, KILL = signal.SIGTERM, signal.SIGINT, signal.SIGKILL


class Life(NamedTuple):
    """How an Envoy lives.

    Attributes:
        seconds: after which it ends by itself.
        status: of that end; negative for a signal.
        dies: seconds that it takes to end when it is told to.
        last: the status of that end.
    """

    seconds: float = inf
    status: int = 0
    dies: float = 0.1
    last: int = 0


class Refused(NamedTuple):
    """An Envoy that the system does not start."""

    error: OSError


class World:
    """The system, Envoy's administration, and the certificate; the lives of its Envoys come in the order of their starts."""

    def __init__(self, *lives: Life | Refused) -> None:
        self.clock = 0.0
        self.started: list[tuple[float, str]] = []  # when, and the epoch
        self.sent: list[tuple[float, int, signal.Signals]] = []  # when, the Envoy's number, and what
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.certificate = "first"
        self.drained: list[float] = []
        self.answers_until = inf
        self.busy_until = 0.0
        self.initializing = False
        self.unwritable = False
        self._lives = list(lives)
        self._living: dict[int, Life] = {}
        self._dead: list[ExitedChild] = []
        self._pending: set[signal.Signals] = set()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()  # of what happens at the same moment

    def run(self) -> int:
        config = LaunchConfig(
            prepare=self._prepare,
            admin=self,
            drain=DRAIN,
            certificate=lambda: self.certificate,
            info=self.notes.append,
            warn=self.warnings.append,
        )
        return Launcher(config, self).run()

    # What a test writes down.

    def at(self, moment: float, happen: Callable[[], None]) -> None:
        heappush(self._events, (moment, next(self._order), happen))

    def signal_at(self, moment: float, number: signal.Signals) -> None:
        self.at(moment, lambda: self._pending.add(number))

    def certificate_at(self, moment: float, certificate: str) -> None:
        def change() -> None:
            self.certificate = certificate
            self._pending.add(WAKE_UP)

        self.at(moment, change)

    def orphan_at(self, moment: float) -> None:
        self.at(moment, lambda: self._end(7, 1))

    # What the launcher asks of the system.

    def now(self) -> float:
        return self.clock

    def wait(self, seconds: float | None) -> signal.Signals | None:
        deadline = inf if seconds is None else self.clock + seconds
        while not self._pending and self._events and self._events[0][0] <= deadline:
            moment, _, happen = heappop(self._events)
            self.clock = max(self.clock, moment)
            happen()
        if self._pending:
            arrived = min(self._pending)  # as the kernel does
            self._pending.remove(arrived)
            return arrived
        assert deadline < inf, f"at {self.clock} it waits forever: {self.notes + self.warnings}"
        self.clock = deadline
        return None

    def start(self, argv: tuple[str, ...]) -> int:
        assert self._lives, f"one start too many, at {self.clock}"
        life = self._lives.pop(0)
        self.started.append((round(self.clock, 6), argv[1]))
        if isinstance(life, Refused):
            raise life.error
        pid = FIRST_PID + len(self.started) - 1
        self._living[pid] = life
        self._end_after(life.seconds, pid, life.status)
        return pid

    def reap(self) -> Iterator[ExitedChild]:
        while self._dead:
            yield self._dead.pop(0)

    def send(self, pid: int, number: signal.Signals) -> None:
        self.sent.append((round(self.clock, 6), pid - FIRST_PID, number))
        life = self._living[pid]
        if number is KILL:
            self._end_after(0.0, pid, -KILL)
        else:
            self._end_after(life.dies, pid, life.last)

    # What it asks of Envoy's administration.

    def is_initializing(self) -> bool:
        return self.initializing and self.clock < self.answers_until

    def drain(self) -> None:
        self._answer()
        self.drained.append(self.clock)

    def connections(self) -> int:
        self._answer()
        return int(self.clock < self.busy_until)

    def _answer(self) -> None:
        if self.clock >= self.answers_until:
            problem = "Connection refused"
            raise Unreachable(problem)

    def _prepare(self, epoch: int) -> tuple[str, ...]:
        if self.unwritable:
            raise InvalidInput("--configPath", "no space", "some space")
        return ("envoy", str(epoch))

    def _end_after(self, seconds: float, pid: int, status: int) -> None:
        if seconds < inf:
            self.at(self.clock + seconds, lambda: self._end(pid, status))

    def _end(self, pid: int, status: int) -> None:
        is_dead_already = self._living.pop(pid, None) is None and pid >= FIRST_PID
        if not is_dead_already:
            self._dead.append(ExitedChild(pid, status))
            self._pending.add(signal.SIGCHLD)


def moments(world: World) -> list[float]:
    return [moment for moment, _ in world.started]


def tries_from(moment: float) -> list[float]:
    return [round(moment + later, 6) for later in TRIES]


FAILING = Life(0.0, 1)


def test_the_first_envoy_is_started_at_once_and_its_clean_end_is_the_end() -> None:
    world = World(Life(5.0, 0))
    assert world.run() == 0
    assert world.started == [(0.0, "0")]
    assert world.clock == 5.0
    assert world.warnings == []
    assert world.notes == ["envoy, epoch 0, started as process 100: envoy 0", "envoy, epoch 0, exited with status 0"]


@pytest.mark.parametrize(("status", "code"), [(1, 1), (77, 77), (-signal.SIGSEGV, 139), (-signal.SIGKILL, 137)])
def test_an_envoy_that_does_not_start_is_tried_ten_times_and_its_last_status_is_handed_on(status: int, code: int) -> None:
    world = World(*[FAILING] * 9, Life(0.0, status))
    with pytest.raises(ChildFailed, match="Envoy did not start in 10 tries") as failed:
        world.run()
    assert failed.value.exit_code == code
    assert moments(world) == tries_from(0.0)
    assert {epoch for _, epoch in world.started} == {"0"}


def test_each_try_that_failed_is_told_with_the_delay_before_the_next() -> None:
    world = World(Life(0.0, 1), Life(0.0, -signal.SIGABRT), Life(1.0))
    assert world.run() == 0
    assert world.warnings == [
        "envoy, epoch 0, exited with status 1; trying again in 0.2 s",
        "envoy, epoch 0, was terminated by SIGABRT; trying again in 0.4 s",
    ]


def test_an_envoy_that_lived_for_ten_seconds_gives_its_successor_all_tries_again() -> None:
    world = World(*[FAILING] * 9, Life(10.0, 1), *[FAILING] * 10)
    with pytest.raises(ChildFailed):
        world.run()
    assert moments(world)[10:] == tries_from(TRIES[-1] + 10.0 + 0.2)


def test_an_envoy_that_lived_for_less_does_not() -> None:
    world = World(*[FAILING] * 9, Life(9.9, 1))
    with pytest.raises(ChildFailed):
        world.run()
    assert len(world.started) == 10


def test_an_envoy_that_the_system_does_not_start_is_tried_again_and_named_in_the_end() -> None:
    world = World(*[Refused(OSError("no such file"))] * 10)
    with pytest.raises(ChildFailed, match=r"cannot start 'envoy': no such file.* 10 tries") as failed:
        world.run()
    assert failed.value.exit_code == 1
    assert moments(world) == tries_from(0.0)


def test_a_bootstrap_file_that_cannot_be_written_ends_the_first_start() -> None:
    world = World()
    world.unwritable = True
    with pytest.raises(InvalidInput, match="--configPath"):
        world.run()


def test_orphans_are_taken_in_without_harm() -> None:
    world = World(Life(20.0))
    world.orphan_at(5.0)
    assert world.run() == 0
    assert (len(world.started), world.clock) == (1, 20.0)


# A new certificate.


def test_a_new_certificate_starts_the_next_epoch_and_the_former_ones_end_is_not_the_end() -> None:
    world = World(Life(40.0), Life(100.0))
    world.certificate_at(20.0, "second")
    assert world.run() == 0
    assert world.started == [(0.0, "0"), (21.0, "1")]
    assert world.clock == 121.0
    assert world.sent == []
    assert world.warnings == []


def test_a_former_epoch_that_ends_badly_is_only_a_warning() -> None:
    world = World(Life(40.0, -signal.SIGSEGV), Life(100.0))
    world.certificate_at(20.0, "second")
    assert world.run() == 0
    assert world.warnings == ["envoy, epoch 0, was terminated by SIGSEGV"]
    assert len(world.started) == 2


def test_the_certificate_is_looked_at_when_nothing_has_changed_for_a_second() -> None:
    world = World(Life(40.0), Life(100.0))
    for moment in (20.0, 20.5, 21.25):
        world.certificate_at(moment, f"of {moment}")
    world.run()
    assert moments(world) == [0.0, 22.25]


@pytest.mark.parametrize("found", ["first", ""], ids=["the same", "incomplete"])
def test_files_without_a_new_whole_certificate_start_nothing(found: str) -> None:
    world = World(Life(40.0))
    world.certificate_at(20.0, found)
    assert world.run() == 0
    assert moments(world) == [0.0]


def test_a_certificate_that_was_incomplete_counts_when_it_is_whole() -> None:
    world = World(Life(40.0), Life(100.0))
    world.certificate_at(20.0, "")
    world.certificate_at(30.0, "second")
    world.run()
    assert moments(world) == [0.0, 31.0]


def test_a_third_epoch_waits_until_the_first_has_ended() -> None:
    world = World(Life(40.0), Life(30.0), Life(100.0))
    world.certificate_at(20.0, "second")
    world.certificate_at(25.0, "third")
    assert world.run() == 0
    assert [epoch for _, epoch in world.started] == ["0", "1", "2"]
    assert 40.0 <= moments(world)[2] <= 41.0


def test_a_successor_that_does_not_start_leaves_the_former_epoch_alone() -> None:
    world = World(Life(), *[FAILING] * 10)
    world.certificate_at(20.0, "second")
    world.signal_at(500.0, TERM)
    assert world.run() == 0
    assert world.started[1:] == [(moment, "1") for moment in tries_from(21.0)]
    assert world.warnings[-1].endswith("giving up after 10 tries: the previous epoch keeps running with its old certificate")
    assert world.clock >= 500.0


def test_a_successor_whose_file_cannot_be_written_leaves_the_former_epoch_alone() -> None:
    world = World(Life(), Life(100.0))
    world.at(19.0, lambda: setattr(world, "unwritable", True))
    world.certificate_at(20.0, "second")
    world.at(22.0, lambda: setattr(world, "unwritable", False))
    world.signal_at(50.0, TERM)
    assert world.run() == 0
    assert world.started == [(0.0, "0"), (22.4, "1")]
    assert "--configPath" in world.warnings[0]


def test_an_end_with_success_of_a_successor_is_no_end_while_the_former_epoch_goes_on() -> None:
    world = World(Life(), Life(1.0, 0), Life())
    world.certificate_at(20.0, "second")
    world.signal_at(50.0, TERM)
    world.run()
    assert world.started == [(0.0, "0"), (21.0, "1"), (22.2, "1")]


def test_a_new_certificate_gives_all_tries_again_and_does_not_wait_for_the_next() -> None:
    world = World(*[FAILING] * 8, *[FAILING] * 10)
    world.initializing = True  # as a former Envoy on the same port would say
    world.certificate_at(TRIES[7] + 3.0, "second")
    with pytest.raises(ChildFailed):
        world.run()
    assert moments(world)[8:] == tries_from(TRIES[7] + 4.0)


def test_an_envoy_that_started_without_a_whole_certificate_is_followed_when_it_is_whole() -> None:
    world = World(Life(40.0), Life(100.0))
    world.certificate = ""
    world.certificate_at(20.0, "first")
    assert world.run() == 0
    assert moments(world) == [0.0, 21.0]


def test_a_try_after_the_change_has_the_new_certificate_already() -> None:
    world = World(FAILING, Life(100.0))
    world.certificate_at(0.1, "second")
    assert world.run() == 0
    assert world.started == [(0.0, "0"), (0.2, "0")]


def test_an_envoy_that_does_not_serve_yet_is_started_anew_with_its_certificate() -> None:
    world = World(Life(dies=0.5), Life(100.0))
    world.initializing = True
    world.certificate_at(20.0, "second")
    assert world.run() == 0
    assert world.sent == [(21.0, 0, TERM)]
    assert world.started == [(0.0, "0"), (21.5, "0")]
    assert world.warnings == []


def test_an_envoy_that_was_told_to_end_hands_nothing_over_to_a_still_newer_certificate() -> None:
    world = World(Life(dies=3.0), Life(100.0))
    world.initializing = True
    world.answers_until = 21.5
    world.certificate_at(20.0, "second")
    world.certificate_at(21.2, "third")
    assert world.run() == 0
    assert world.sent == [(21.0, 0, TERM)]
    assert world.started == [(0.0, "0"), (24.0, "0")]


# The end.


@pytest.mark.parametrize("number", [TERM, INT])
def test_a_signal_drains_first_and_ends_envoy_when_it_has_been_quiet_for_a_second(number: signal.Signals) -> None:
    world = World(Life())
    world.busy_until = 33.0
    world.signal_at(30.0, number)
    assert world.run() == 0
    assert world.drained == [30.0]
    ((moment, _, sent),) = world.sent
    assert sent == TERM
    assert 33.9 <= moment <= 34.1
    assert f"{number.name}: draining for at most 45 s" in world.notes


def test_without_any_connection_the_end_comes_after_a_second() -> None:
    world = World(Life())
    world.signal_at(30.0, TERM)
    world.run()
    assert world.sent == [(31.0, 0, TERM)]


def test_connections_that_do_not_end_have_the_drain_time() -> None:
    world = World(Life())
    world.busy_until = inf
    world.signal_at(30.0, TERM)
    assert world.run() == 0
    assert world.sent == [(30.0 + DRAIN, 0, TERM)]


@pytest.mark.parametrize("second", [TERM, INT])
def test_a_second_signal_ends_envoy_at_once(second: signal.Signals) -> None:
    world = World(Life())
    world.busy_until = inf
    world.signal_at(30.0, TERM)
    world.signal_at(31.03, second)
    world.run()
    assert world.sent == [(31.03, 0, TERM)]


@pytest.mark.parametrize("silent", [0.0, 32.0], ids=["from the start", "while it drains"])
def test_an_envoy_that_does_not_answer_is_stopped_at_once(silent: float) -> None:
    world = World(Life())
    world.busy_until = inf
    world.answers_until = silent
    world.signal_at(30.0, TERM)
    assert world.run() == 0
    ((moment, _, sent),) = world.sent
    assert sent == TERM
    assert max(30.0, silent) <= moment <= max(30.0, silent) + 0.1
    assert world.warnings == ["cannot drain Envoy (Connection refused); stopping it immediately"]


def test_an_envoy_that_does_not_end_when_it_is_told_to_is_killed() -> None:
    world = World(Life(dies=inf))
    world.signal_at(30.0, TERM)
    assert world.run() == 128 + KILL
    assert world.sent == [(31.0, 0, TERM), (36.0, 0, KILL)]


@pytest.mark.parametrize(("last", "code"), [(0, 0), (3, 3), (-TERM, 143)])
def test_the_exit_status_is_envoys(last: int, code: int) -> None:
    world = World(Life(last=last))
    world.signal_at(30.0, TERM)
    assert world.run() == code


def test_of_two_epochs_both_are_ended_and_the_newer_ones_status_counts() -> None:
    world = World(Life(last=1), Life(last=4, dies=0.2))
    world.certificate_at(20.0, "second")
    world.signal_at(30.0, TERM)
    assert world.run() == 4
    assert sorted(number for _, number, _ in world.sent) == [0, 1]


def test_an_envoy_that_ends_while_it_drains_is_waited_for_no_longer() -> None:
    world = World(Life(31.0, 5))
    world.busy_until = inf
    world.signal_at(30.0, TERM)
    assert world.run() == 5
    assert world.sent == []
    assert world.clock == 31.0


def test_an_orphan_that_ends_meanwhile_changes_nothing() -> None:
    world = World(Life(dies=1.0, last=6))
    world.signal_at(30.0, TERM)
    world.orphan_at(30.5)
    world.orphan_at(31.5)
    assert world.run() == 6
    assert world.clock == pytest.approx(32.0)


@pytest.mark.parametrize(("number", "code"), [(TERM, 143), (INT, 130)])
def test_a_signal_while_no_envoy_runs_ends_at_once_with_the_signals_status(number: signal.Signals, code: int) -> None:
    world = World(FAILING, FAILING)
    world.signal_at(0.5, number)
    assert world.run() == code
    assert world.clock == 0.5
    assert len(world.started) == 2
    assert world.drained == []
