"""The client side of a lab, for commands and tests: start, inspect, enter and stop it."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from istio_init.core.errors import ChildFailed, InvalidInput, IstioInitError, NotPermitted, Unsupported
from istio_init.lab import protocol
from istio_init.lab.pods import SYSTEM_PATH, as_user, enter
from istio_init.lab.settings import APP_UID, mesh_pods

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Sequence

    from istio_init.lab.settings import LabSettings

TOOLS = ("unshare", "nsenter", "setpriv", "mount")
# When the first process of a PID namespace exits, the kernel kills all others.
ISOLATED = ("unshare", "--net", "--mount", "--mount-proc", "--propagation=private", "--pid", "--fork", "--kill-child", "--")
STOP_TIMEOUT = 30.0  # seconds


class Lab(NamedTuple):
    """A running lab.

    Attributes:
        name: its name.
        supervisor: the process ID of its first process, in this process's PID namespace.
    """

    name: str
    supervisor: int

    @classmethod
    def find(cls, name: str) -> Lab:
        """Find a running lab by name.

        Raises:
            IstioInitError: there is no such lab.
        """
        with protocol.connect(name) as connection:
            return cls(name, protocol.peer(connection)[0])

    @classmethod
    def up(cls, name: str, settings: LabSettings, progress: Callable[[str], None]) -> Lab:
        """Start a lab, and wait until its proxies are ready.

        Args:
            name: the lab's name; labs with different names are independent.
            settings: the lab's settings.
            progress: is called with a description of each step.

        Raises:
            InvalidInput: a setting is not allowed.
            NotPermitted, Unsupported, ChildFailed, IstioInitError: the lab cannot be started; everything is cleaned up.
        """
        mesh_pods(settings)
        _check_machine()
        with protocol.listen(name) as server, tempfile.TemporaryFile() as messages:
            argv = (*ISOLATED, sys.executable, "-m", "istio_init.lab.supervisor", str(server.fileno()))
            starter = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=messages,  # not inherited: the lab would keep our stderr open
                pass_fds=[server.fileno()],
                start_new_session=True,  # so that Ctrl-C only reaches this process, which stops the lab
                env={"PATH": f"{Path(sys.executable).parent}:{SYSTEM_PATH}", "PYTHONDONTWRITEBYTECODE": "1"},
            )
            try:
                _wait_until_ready(starter, settings, progress)
            except BaseException as error:
                starter.kill()
                starter.wait()
                messages.seek(0)
                error.add_note(messages.read().decode(errors="replace").strip())
                raise
            finally:
                starter.stdout.close()  # type: ignore[union-attr] # is a pipe
            starter.returncode = 0  # it keeps running; suppresses Popen's ResourceWarning
        return cls.find(name)

    def status(self) -> protocol.Message:
        """Return the lab's status."""
        return self._ask({"do": "status"})

    def send(self, pod: str, program: str, number: signal.Signals) -> None:
        """Send a signal to a pod's program: `app`, `proxy` or `control-plane`."""
        self._ask({"do": "stop", "pod": self.pod(pod)["name"], "program": program, "signal": number})

    def start(self, pod: str, program: str) -> None:
        """Restart a program that has exited."""
        self._ask({"do": "start", "pod": self.pod(pod)["name"], "program": program})

    def pod(self, name: str) -> protocol.Message:
        """Return the status of a pod, by its name or that of its service.

        Raises:
            InvalidInput: there is no such pod.
        """
        pods: list[protocol.Message] = self.status()["pods"]
        for pod in pods:
            if name in (pod["name"], pod["service"]):
                return pod
        raise InvalidInput("POD", f"{name!r} is not in lab {self.name!r}", ", ".join(pod["name"] for pod in pods))

    def command(self, pod: str, argv: Sequence[str], uid: int = APP_UID) -> tuple[str, ...]:
        """Wrap a command line to run in a pod.

        Args:
            pod: the name of the pod or of its service.
            argv: the command line.
            uid: the user to run it as.

        Raises:
            InvalidInput: there is no such pod.
        """
        user = argv if uid == 0 else as_user(uid, *argv)
        # Enters the lab's namespaces first: the command then exits with the lab, and the pod's process ID is valid there.
        return (
            "nsenter",
            f"--target={self.supervisor}",
            "--net",
            "--mount",
            "--pid",
            "--",
            *enter(self.pod(pod)["sandbox"], *user),
        )

    def down(self) -> None:
        """Stop the lab, and wait until it is gone.

        Raises:
            IstioInitError: it does not stop.
        """
        ended = os.pidfd_open(self.supervisor)
        try:
            with protocol.connect(self.name) as connection:
                protocol.send(connection, {"do": "down"})
            if not select.select([ended], [], [], STOP_TIMEOUT)[0]:
                message = f"the lab's supervisor, process {self.supervisor}, did not exit within {STOP_TIMEOUT:g} s; kill it"
                raise IstioInitError(message)
        finally:
            os.close(ended)

    def _ask(self, message: protocol.Message) -> protocol.Message:
        with protocol.connect(self.name) as connection:
            protocol.send(connection, message)
            return protocol.receive(connection)


def _check_machine() -> None:
    if os.geteuid() != 0:
        message = "creating the lab's namespaces requires root; run it with sudo"
        raise NotPermitted(message)
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        message = f"not found on the PATH: {', '.join(missing)}; install util-linux"
        raise Unsupported(message)


def _wait_until_ready(starter: subprocess.Popen[bytes], settings: LabSettings, progress: Callable[[str], None]) -> None:
    with starter.stdin as stdin:  # type: ignore[union-attr] # is a pipe
        stdin.write(settings.to_json().encode())
    for line in starter.stdout:  # type: ignore[union-attr] # is a pipe
        message = json.loads(line)
        if "ready" in message:
            return
        if "failed" in message:
            raise ChildFailed(message["failed"], message["exit_code"])
        progress(message["step"])
    message = "the lab exited while starting; its error output follows"
    raise IstioInitError(message)
