"""The lab's first process: creates the pods, starts their programs, and serves the lab's commands.

It is PID 1 of a PID namespace in which the whole lab runs: when it exits, for whatever reason, the kernel kills all other
processes, and their namespaces, mounts and files (on a tmpfs) disappear. It is a separate program, started by
`istio_init.lab.client`: `python -m istio_init.lab.supervisor SOCKET < SETTINGS`.
"""

from __future__ import annotations

import http.client
import os
import select
import signal
import socket
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from istio_init.core.errors import ChildFailed, IstioInitError
from istio_init.core.processes import RealProcesses
from istio_init.core.runner import Command, run_all
from istio_init.lab import network, pods, protocol
from istio_init.lab.names import LISTENING
from istio_init.lab.settings import STATUS_PORT, LabSettings, PodPlan, mesh_pods
from istio_init.sidecar.launcher import readiness

if TYPE_CHECKING:
    from collections.abc import Callable

SETUP_TIMEOUT = 20.0  # seconds to create namespaces, and to write rules
POLL = 0.1  # seconds
REAP_INTERVAL = 0.5  # seconds
LOG_TAIL = 3  # lines of a program's log in an error


class Running(NamedTuple):
    """A process of a pod; its exit status is None while it runs."""

    pid: int
    program: pods.Program
    status: int | None = None


class Supervisor:
    """Creates a lab and keeps it running."""

    def __init__(self, settings: LabSettings, report: Callable[[protocol.Message], None]) -> None:
        self._settings = settings
        self._report = report
        self._system = RealProcesses()
        self._sandboxes: dict[str, int] = {}  # pod → process ID
        self._running: dict[tuple[str, str], Running] = {}  # pod, name of the program → process

    def build(self) -> None:
        """Create the lab, and wait until traffic can flow.

        Raises:
            IstioInitError: a step failed.
        """
        plans = pods.all_pods(self._settings)
        self._report({"step": f"creating namespaces for {len(plans)} pods"})
        network.make_bridge(self._settings.families)
        pods.prepare_files(self._settings)
        self._make_sandboxes(plans)
        self._report({"step": "running istio-init in each pod"})
        self._write_rules()
        self._report({"step": "starting control plane, apps and Envoys"})
        for program in pods.programs(self._settings):
            self.start(program)
        if self._settings.ready_timeout:
            self._report({"step": "waiting for Envoys to receive their configuration"})
            self._wait_for_programs()

    def serve(self, server: socket.socket) -> None:
        """Serve commands until `down`."""
        handlers: dict[str, Callable[[protocol.Message], protocol.Message]] = {
            "status": lambda _: self.status(),
            "stop": self._stop,
            "start": self._restart,
        }
        while True:
            self._reap()
            if not select.select([server], [], [], REAP_INTERVAL)[0]:
                continue
            connection, _ = server.accept()
            connection.settimeout(protocol.RESPONSE_TIMEOUT)
            with connection:
                if protocol.peer(connection)[1] != os.geteuid():
                    continue
                try:
                    request = protocol.receive(connection)
                    if request["do"] == "down":
                        return
                    protocol.send(connection, handlers[request["do"]](request))
                except (OSError, ValueError, KeyError, IstioInitError) as error:
                    sys.stderr.write(f"cannot handle a command: {error!r}\n")

    def start(self, program: pods.Program) -> None:
        """Start a program in its pod."""
        log = os.fsencode(program.log)
        append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, log, append, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        argv = pods.enter(self._sandboxes[program.pod], *program.argv)
        pid = os.posix_spawnp(argv[0], argv, program.environment, file_actions=actions)
        self._running[program.key] = Running(pid, program)

    def status(self) -> protocol.Message:
        """Describe the lab."""
        plans = pods.all_pods(self._settings)
        return {
            "shape": self._settings.listeners,
            "rules": list(self._settings.rules),
            "pods": [
                {
                    "name": plan.name,
                    "service": plan.service,
                    "address": plan.address,
                    "addresses": plan.addresses,
                    "sandbox": self._sandboxes[plan.name],
                    "programs": {
                        name: {"pid": one.pid, "status": one.status, "log": one.program.log}
                        for (pod, name), one in self._running.items()
                        if pod == plan.name
                    },
                }
                for plan in plans
            ],
            "discovery": pods.discovery_status(),
        }

    def _stop(self, request: protocol.Message) -> protocol.Message:
        """Send a signal to a pod's program."""
        os.kill(self._running[request["pod"], request["program"]].pid, request["signal"])
        return {}

    def _restart(self, request: protocol.Message) -> protocol.Message:
        """Restart a pod's program after it has exited."""
        self.start(self._running[request["pod"], request["program"]].program)
        return {}

    def _make_sandboxes(self, plans: tuple[PodPlan, ...]) -> None:
        ready: dict[str, int] = {}
        for number, plan in enumerate(plans):
            reader, writer = os.pipe()
            argv = pods.sandbox(plan, _link(number))
            actions = [(os.POSIX_SPAWN_DUP2, writer, 1), (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
            self._sandboxes[plan.name] = os.posix_spawnp(argv[0], argv, os.environ, file_actions=actions)
            os.close(writer)
            ready[plan.name] = reader
        deadline = time.monotonic() + SETUP_TIMEOUT
        for number, (name, reader) in enumerate(ready.items()):
            readable = select.select([reader], [], [], max(deadline - time.monotonic(), 0))[0]
            if not (readable and os.read(reader, 16)):
                message = f"cannot create the namespaces of pod {name}"
                raise IstioInitError(message)
            os.close(reader)
            network.attach(_link(number))

    def _write_rules(self) -> None:
        mesh = mesh_pods(self._settings)
        commands = [Command(pods.enter(self._sandboxes[plan.name], *pods.init(self._settings))) for plan in mesh]
        for plan, result in zip(mesh, run_all(commands, SETUP_TIMEOUT, lambda _: None), strict=True):
            Path(pods.log_of(plan.name, "istio-init")).write_text(result.stderr + "\n", encoding="utf-8")
            if result.status != 0:
                message = f"istio-init in pod {plan.name}: {result.stderr.removeprefix('istio-init: error: ')}"
                raise ChildFailed(message, result.status or IstioInitError.exit_code)

    def _wait_for_programs(self) -> None:
        deadline = time.monotonic() + self._settings.ready_timeout
        for plan in mesh_pods(self._settings):
            self._wait_for(plan.name, pods.PROXY, partial(_proxy_unready, plan), deadline)
        for pod, program in self._running:
            if program == pods.DNS:
                self._wait_for(pod, program, partial(_dns_unready, pods.log_of(pod, program)), deadline)

    def _wait_for(self, pod: str, program: str, unready: Callable[[], str], deadline: float) -> None:
        while reason := unready():
            if _is_abandoned():
                raise IstioInitError("aborted: the command that started this lab has exited")
            self._reap()
            ended = self._running[pod, program].status
            if ended is not None or time.monotonic() > deadline:
                tail = Path(pods.log_of(pod, program)).read_text(encoding="utf-8").splitlines()[-LOG_TAIL:]
                message = f"the {program} of pod {pod} is not ready: {reason}; its log ends with: {' | '.join(tail)}; "
                message += "use --no-wait to keep the lab up for inspection"
                raise IstioInitError(message)
            time.sleep(POLL)

    def _reap(self) -> None:
        for child in self._system.reap():
            for key, one in self._running.items():
                if one.pid == child.pid:
                    self._running[key] = one._replace(status=child.status)


def main(arguments: list[str]) -> None:
    """Create a lab and keep it running."""
    server = socket.socket(fileno=int(arguments[0]))
    settings = LabSettings.from_json(sys.stdin.read())
    signal.signal(signal.SIGTERM, _end)  # PID 1 has no default signal actions

    def report(message: protocol.Message) -> None:
        sys.stdout.buffer.write(protocol.encode(message))
        sys.stdout.flush()

    supervisor = Supervisor(settings, report)
    try:
        mount_home()
        supervisor.build()
    except IstioInitError as error:
        report({"failed": str(error), "exit_code": error.exit_code})
        return
    server.listen()
    report({"ready": True})
    supervisor.serve(server)


def _is_abandoned() -> bool:
    """Return whether the command that starts this lab, and reads this process's output, has exited."""
    output = select.poll()
    output.register(1, 0)  # POLLERR is always reported
    return bool(output.poll(0))


def mount_home() -> None:
    """Mount a tmpfs for the lab's files, which disappears with its mount namespace."""
    (result,) = run_all([Command(("mount", "-t", "tmpfs", "istio-init-lab", "/run"))], SETUP_TIMEOUT, lambda _: None)
    if result.status != 0:
        message = f"cannot mount a tmpfs on /run: {result.stderr}"
        raise IstioInitError(message)


def _end(*_: object) -> NoReturn:
    os._exit(0)


def _link(number: int) -> str:
    return f"pod{number}"


def _dns_unready(log: str) -> str:
    """Return why a DNS server is not ready, or an empty string, judging by its log."""
    return "" if LISTENING in Path(log).read_text(encoding="utf-8") else "not listening yet"


def _proxy_unready(plan: PodPlan) -> str:
    """Return why a pod's proxy is not ready, or an empty string, by probing it from outside like a kubelet."""
    connection = http.client.HTTPConnection(plan.address, STATUS_PORT, timeout=2.0)
    try:
        connection.request("GET", readiness.PATH)
        response = connection.getresponse()
        text = response.read().decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        return f"no response on port {STATUS_PORT}: {error}"
    finally:
        connection.close()
    return "" if response.status == http.client.OK else text


if __name__ == "__main__":
    main(sys.argv[1:])
