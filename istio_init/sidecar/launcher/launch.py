"""The lifecycle of a pod's Envoy: epochs, retries, draining and shutdown.

An epoch is one Envoy process. The next epoch takes over its predecessor's listening sockets (hot restart), and the
predecessor exits once its connections have drained. Source: Istio 1.0.5, `pkg/proxy/agent.go`; Envoy's documentation,
"Hot restart".
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, NamedTuple, Protocol

from istio_init.core.errors import ChildFailed, InvalidInput
from istio_init.core.processes import STOP_SIGNALS, WAKE_UP, ExitedChild, Processes
from istio_init.sidecar.launcher.admin import Unreachable

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_TRIES = 10
FIRST_DELAY = 0.2  # seconds before the second try; doubles with each further try
STARTUP_TIME = 10.0  # seconds; an Envoy that ran longer had started, so the number of tries is reset
DRAIN_POLL = 0.1  # seconds between two checks for remaining connections
IDLE_PERIOD = 1.0  # seconds without any connection after which draining is complete
STOP_TIMEOUT = 5.0  # seconds for Envoy to exit after a signal
SETTLE_TIME = 1.0  # seconds without further changes after which a certificate's files are considered complete
SIGNAL_EXIT = 128  # plus the signal number, as in shells


class Administration(Protocol):
    """What the launcher needs of Envoy's admin interface (`istio_init.sidecar.launcher.admin.Admin`)."""

    def is_initializing(self) -> bool:
        """Return whether Envoy is still initializing."""

    def drain(self) -> None:
        """Start draining."""

    def connections(self) -> int:
        """Count the active connections."""


class LaunchConfig(NamedTuple):
    """What to run, and how.

    Attributes:
        prepare: writes the bootstrap file of an epoch and returns Envoy's command line.
        admin: Envoy's admin interface.
        drain: the drain time, in seconds.
        certificate: returns a fingerprint of the certificate, or an empty string if there is none.
        info: logs a message.
        warn: logs a warning.
    """

    prepare: Callable[[int], tuple[str, ...]]
    admin: Administration
    drain: float
    certificate: Callable[[], str]
    info: Callable[[str], None]
    warn: Callable[[str], None]


class Epoch(NamedTuple):
    """A running Envoy, and when it was started."""

    number: int
    since: float


class Launcher:
    """Runs Envoy until it exits or a stop signal arrives."""

    def __init__(self, config: LaunchConfig, processes: Processes) -> None:
        self._config = config
        self._processes = processes
        self._running: dict[int, Epoch] = {}  # by process ID
        self._tries = 0
        self._start_at: float | None = processes.now()
        self._check_at: float | None = None  # when to check whether the certificate has changed
        self._certificate = ""  # fingerprint of the certificate that the last Envoy was started with
        self._replacing = False  # an initializing Envoy was stopped, to be restarted with a new certificate

    def run(self) -> int:
        """Run until Envoy has exited for good, and return its exit status.

        Raises:
            ChildFailed: Envoy could not be started.
        """
        while True:
            if self._is_due(self._check_at):
                self._check_certificate()
            if self._is_due(self._start_at):
                self._start()
            arrived = self._processes.wait(self._until_next())
            if arrived in STOP_SIGNALS:
                return self._stop(arrived)
            if arrived is WAKE_UP:
                self._check_at = self._processes.now() + SETTLE_TIME
            # Standard signals do not queue: one SIGCHLD can stand for several children.
            for child in self._processes.reap():
                status = self._handle_exit(child)
                if status is not None:
                    return status

    def _is_due(self, moment: float | None) -> bool:
        return moment is not None and self._processes.now() >= moment

    def _until_next(self) -> float | None:
        moments = [moment for moment in (self._start_at, self._check_at) if moment is not None]
        return max(min(moments) - self._processes.now(), 0.0) if moments else None

    def _start(self) -> None:
        """Start the next epoch."""
        self._start_at = None
        self._tries += 1
        self._certificate = self._config.certificate()
        epoch = max((one.number for one in self._running.values()), default=-1) + 1
        try:
            argv = self._config.prepare(epoch)
        except InvalidInput as error:
            if not self._running:
                raise
            self._failed(str(error), error.exit_code)
            return
        try:
            pid = self._processes.start(argv)
        except OSError as error:
            self._failed(f"cannot start {argv[0]!r}: {error}", 1)
            return
        self._running[pid] = Epoch(epoch, self._processes.now())
        self._config.info(f"envoy, epoch {epoch}, started as process {pid}: {' '.join(argv)}")

    def _handle_exit(self, child: ExitedChild) -> int | None:
        """Handle a child's exit; return the exit status if the launcher is done."""
        ended = self._running.pop(child.pid, None)
        if ended is None:
            return None  # an orphan, adopted as PID 1
        if self._processes.now() - ended.since >= STARTUP_TIME:
            self._tries = 0
        how = f"envoy, epoch {ended.number}, {_how(child.status)}"
        if self._replacing and not self._running:
            self._replacing = False
            self._start_at = self._processes.now()
            self._config.info(how)
            return None
        is_last = all(ended.number > other.number for other in self._running.values())
        if not is_last:  # its successor has taken over
            (self._config.warn if child.status else self._config.info)(how)
            return None
        if child.status == 0 and not self._running:
            self._config.info(how)
            return 0
        self._failed(how, child.status)
        return None

    def _failed(self, how: str, status: int) -> None:
        """Schedule a retry, or give up."""
        if self._tries < MAX_TRIES:
            delay = FIRST_DELAY * 2 ** max(self._tries - 1, 0)
            self._config.warn(f"{how}; trying again in {delay:g} s")
            self._start_at = self._processes.now() + delay
        elif self._running:
            self._config.warn(
                f"{how}; giving up after {MAX_TRIES} tries: the previous epoch keeps running with its old certificate"
            )
        else:
            message = f"{how}; Envoy did not start in {MAX_TRIES} tries; see its log output above"
            raise ChildFailed(message, _exit_code(status))

    def _check_certificate(self) -> None:
        """Start the next epoch if the certificate has changed; retry later if two epochs are running or one is stopping."""
        if len(self._running) > 1 or self._replacing:
            self._check_at = self._processes.now() + SETTLE_TIME
            return
        self._check_at = None
        found = self._config.certificate()
        if not found or found == self._certificate:
            return
        self._tries = 0
        if self._running and self._config.admin.is_initializing():
            # Envoy refuses a hot restart while its predecessor is initializing.
            self._config.info("the certificate has changed; Envoy is still initializing and is restarted")
            self._replacing = True
            self._signal_all(signal.SIGTERM)
        else:
            self._config.info("the certificate has changed; hot-restarting Envoy")
            self._start_at = self._processes.now()

    def _stop(self, arrived: signal.Signals) -> int:
        """Drain, stop every Envoy, and return the exit status of the latest epoch."""
        if not self._running:
            return SIGNAL_EXIT + arrived
        self._config.info(f"{arrived.name}: draining for at most {self._config.drain:g} s")
        last = max(self._running, key=lambda pid: self._running[pid].number)
        statuses: dict[int, int] = {}
        self._drain(statuses)
        for number in (signal.SIGTERM, signal.SIGKILL):
            self._signal_all(number)
            self._wait_for_exit(self._processes.now() + STOP_TIMEOUT, statuses)
        return _exit_code(statuses.get(last, 0))

    def _drain(self, statuses: dict[int, int]) -> None:
        """Wait until no connection is left, the drain time is over, or a second stop signal arrives."""
        now = self._processes.now()
        deadline, busy = now + self._config.drain, now
        try:
            self._config.admin.drain()
            while self._running and now < min(deadline, busy + IDLE_PERIOD):
                # The poll must not exceed the drain time either.
                if self._processes.wait(min(DRAIN_POLL, deadline - now)) in STOP_SIGNALS:
                    return
                self._collect(statuses)
                now = self._processes.now()
                if self._config.admin.connections():
                    busy = now
        except Unreachable as error:
            self._config.warn(f"cannot drain Envoy ({error}); stopping it immediately")

    def _wait_for_exit(self, deadline: float, statuses: dict[int, int]) -> None:
        self._collect(statuses)
        while self._running and (now := self._processes.now()) < deadline:
            self._processes.wait(deadline - now)
            self._collect(statuses)

    def _signal_all(self, number: signal.Signals) -> None:
        for pid in self._running:
            self._processes.send(pid, number)

    def _collect(self, statuses: dict[int, int]) -> None:
        for child in self._processes.reap():
            ended = self._running.pop(child.pid, None)
            if ended is not None:
                statuses[child.pid] = child.status
                self._config.info(f"envoy, epoch {ended.number}, {_how(child.status)}")


def _how(status: int) -> str:
    return f"was terminated by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"


def _exit_code(status: int) -> int:
    return SIGNAL_EXIT - status if status < 0 else status
