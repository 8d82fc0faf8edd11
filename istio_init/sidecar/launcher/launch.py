"""The life of a pod's Envoys: epochs, retries, draining and the end.

An epoch is one Envoy process. The next one takes over the former one's listening sockets (hot restart) and the former one
ends after its connections have drained. Source: Istio 1.0.5, `pkg/proxy/agent.go`; Envoy's documentation, "Hot restart".
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, NamedTuple, Protocol

from istio_init.core.errors import ChildFailed, InvalidInput
from istio_init.core.processes import NOTICE, STOPPING, Ended, Processes
from istio_init.sidecar.launcher.admin import Unreachable

if TYPE_CHECKING:
    from collections.abc import Callable

TRIES = 10
FIRST_DELAY = 0.2  # seconds before the second try; each further delay is twice as long
STARTED = 10.0  # seconds after which an Envoy that ends had started, so that its successor has all tries again
DRAIN_POLL = 0.1  # seconds between two looks at the connections that are left
QUIET = 1.0  # seconds without any connection, after which nobody is expected any more
STOP_PATIENCE = 5.0  # seconds that an Envoy may take to end when it is told to
SETTLE = 1.0  # seconds without a further change, after which all files of a certificate have been written
INTERRUPTED = 128  # plus the signal's number, as shells have it


class Administration(Protocol):
    """What the launcher asks of Envoy (`istio_init.sidecar.launcher.admin.Admin`)."""

    def is_initializing(self) -> bool:
        """Tell whether Envoy does not serve yet."""

    def drain(self) -> None:
        """Begin to drain."""

    def connections(self) -> int:
        """Count the connections."""


class Plan(NamedTuple):
    """What to run.

    Attributes:
        prepare: writes the bootstrap file of an epoch and gives Envoy's command line.
        admin: Envoy's administration.
        drain: seconds that connections have to come to their end.
        certificate: gives a fingerprint of the certificate, or an empty text where there is none.
        note: takes a message for people.
        warn: takes a warning.
    """

    prepare: Callable[[int], tuple[str, ...]]
    admin: Administration
    drain: float
    certificate: Callable[[], str]
    note: Callable[[str], None]
    warn: Callable[[str], None]


class Epoch(NamedTuple):
    """A running Envoy."""

    number: int
    since: float


class Launcher:
    """Runs Envoys until they are told to end, or end by themselves."""

    def __init__(self, plan: Plan, processes: Processes) -> None:
        self._plan = plan
        self._processes = processes
        self._running: dict[int, Epoch] = {}  # by process id
        self._tries = 0
        self._start_at: float | None = processes.now()
        self._look_at: float | None = None  # when to look whether the certificate has changed
        self._certificate = ""  # the fingerprint of the one that the last Envoy was started with
        self._replacing = False  # whether an Envoy was ended to make room for one with a new certificate

    def run(self) -> int:
        """Run until the end, and give Envoy's exit status.

        Raises:
            ChildFailed: it could not be started.
        """
        while True:
            if self._is_due(self._look_at):
                self._look_at_certificate()
            if self._is_due(self._start_at):
                self._start()
            arrived = self._processes.wait(self._until_next())
            if arrived in STOPPING:
                return self._stop(arrived)
            if arrived is NOTICE:
                self._look_at = self._processes.now() + SETTLE
            # A SIGCHLD stands for any number of children, and one may come while another is handled.
            for child in self._processes.ended():
                status = self._take_in(child)
                if status is not None:
                    return status

    def _is_due(self, moment: float | None) -> bool:
        return moment is not None and self._processes.now() >= moment

    def _until_next(self) -> float | None:
        moments = [moment for moment in (self._start_at, self._look_at) if moment is not None]
        return max(min(moments) - self._processes.now(), 0.0) if moments else None

    def _start(self) -> None:
        """Start the next epoch."""
        self._start_at = None
        self._tries += 1
        self._certificate = self._plan.certificate()
        epoch = max((one.number for one in self._running.values()), default=-1) + 1
        try:
            argv = self._plan.prepare(epoch)
        except InvalidInput as error:
            if not self._running:
                raise
            self._failed(str(error), error.exit_code)
            return
        try:
            pid = self._processes.start(argv)
        except OSError as error:
            self._failed(f"{argv[0]!r} cannot be started: {error}", 1)
            return
        self._running[pid] = Epoch(epoch, self._processes.now())
        self._plan.note(f"envoy, epoch {epoch}, started as process {pid}: {' '.join(argv)}")

    def _take_in(self, child: Ended) -> int | None:
        """Note that a child ended; give the exit status if that was the end of all."""
        ended = self._running.pop(child.pid, None)
        if ended is None:
            return None  # an orphan that was left to process 1
        if self._processes.now() - ended.since >= STARTED:
            self._tries = 0
        how = f"envoy, epoch {ended.number}, {_how(child.status)}"
        if self._replacing and not self._running:
            self._replacing = False
            self._start_at = self._processes.now()
            self._plan.note(how)
            return None
        is_last = all(ended.number > other.number for other in self._running.values())
        if not is_last:  # it has handed over to its successor
            (self._plan.warn if child.status else self._plan.note)(how)
            return None
        if child.status == 0 and not self._running:
            self._plan.note(how)
            return 0
        self._failed(how, child.status)
        return None

    def _failed(self, how: str, status: int) -> None:
        """Try again later, or give up."""
        if self._tries < TRIES:
            delay = FIRST_DELAY * 2 ** max(self._tries - 1, 0)
            self._plan.warn(f"{how}; trying again in {delay:g} s")
            self._start_at = self._processes.now() + delay
        elif self._running:
            self._plan.warn(f"{how}; after {TRIES} tries the former epoch goes on, with its old certificate")
        else:
            message = f"{how}; it did not start in {TRIES} tries; its own messages above say why"
            raise ChildFailed(message, _exit_code(status))

    def _look_at_certificate(self) -> None:
        """Start the next epoch if there is a new certificate; never beside two, or beside one that was ended."""
        if len(self._running) > 1 or self._replacing:
            self._look_at = self._processes.now() + SETTLE
            return
        self._look_at = None
        found = self._plan.certificate()
        if not found or found == self._certificate:
            return
        self._tries = 0
        if self._running and self._plan.admin.is_initializing():
            # It has nothing to hand over, and Envoy refuses a hot restart of such a one.
            self._plan.note("the certificate has changed; an Envoy that does not serve yet is started anew with it")
            self._replacing = True
            self._signal_all(signal.SIGTERM)
        else:
            self._plan.note("the certificate has changed; the next epoch takes over")
            self._start_at = self._processes.now()

    def _stop(self, arrived: signal.Signals) -> int:
        """Drain, then end every Envoy, and give the status of the last one."""
        if not self._running:
            return INTERRUPTED + arrived
        self._plan.note(f"{arrived.name}: draining for at most {self._plan.drain:g} s")
        last = max(self._running, key=lambda pid: self._running[pid].number)
        statuses: dict[int, int] = {}
        self._drain(statuses)
        for number, patience in ((signal.SIGTERM, STOP_PATIENCE), (signal.SIGKILL, STOP_PATIENCE)):
            self._signal_all(number)
            self._wait_for_end(self._processes.now() + patience, statuses)
        return _exit_code(statuses.get(last, 0))

    def _drain(self, statuses: dict[int, int]) -> None:
        """Wait until no connection is left, the time is over, or a second signal comes."""
        now = self._processes.now()
        deadline, busy = now + self._plan.drain, now
        try:
            self._plan.admin.drain()
            while self._running and now < min(deadline, busy + QUIET):
                # The time that is left bounds the poll, too: the drain time is a promise.
                if self._processes.wait(min(DRAIN_POLL, deadline - now)) in STOPPING:
                    return
                self._collect(statuses)
                now = self._processes.now()
                if self._plan.admin.connections():
                    busy = now
        except Unreachable as error:
            self._plan.warn(f"envoy cannot drain ({error}); it is stopped at once")

    def _wait_for_end(self, deadline: float, statuses: dict[int, int]) -> None:
        self._collect(statuses)
        while self._running and (now := self._processes.now()) < deadline:
            self._processes.wait(deadline - now)
            self._collect(statuses)

    def _signal_all(self, number: signal.Signals) -> None:
        for pid in self._running:
            self._processes.send(pid, number)

    def _collect(self, statuses: dict[int, int]) -> None:
        for child in self._processes.ended():
            ended = self._running.pop(child.pid, None)
            if ended is not None:
                statuses[child.pid] = child.status
                self._plan.note(f"envoy, epoch {ended.number}, {_how(child.status)}")


def _how(status: int) -> str:
    return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"


def _exit_code(status: int) -> int:
    return INTERRUPTED - status if status < 0 else status
