"""A lab, as commands and tests see it: made, looked at, entered, ended."""

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
# A PID namespace ends all of its processes with its first one.
ISOLATED = ("unshare", "--net", "--mount", "--mount-proc", "--propagation=private", "--pid", "--fork", "--kill-child", "--")
END_PATIENCE = 30.0  # seconds


class Lab(NamedTuple):
    """A lab that is up.

    Attributes:
        name: the one it was made under.
        supervisor: the process id of its first process, as this process sees it.
    """

    name: str
    supervisor: int

    @classmethod
    def find(cls, name: str) -> Lab:
        """Find a lab by its name.

        Raises:
            IstioInitError: there is none.
        """
        with protocol.connect(name) as connection:
            return cls(name, protocol.peer(connection)[0])

    @classmethod
    def up(cls, name: str, settings: LabSettings, progress: Callable[[str], None]) -> Lab:
        """Make a lab, and wait until its proxies are ready.

        Args:
            name: labs of different names do not know of each other.
            settings: what is made.
            progress: is told each step.

        Raises:
            InvalidInput: a setting is not allowed.
            NotPermitted, Unsupported, ChildFailed, IstioInitError: it cannot be made; nothing of it is left.
        """
        mesh_pods(settings)
        _check_machine()
        with protocol.listen(name) as server, tempfile.TemporaryFile() as messages:
            argv = (*ISOLATED, sys.executable, "-m", "istio_init.lab.supervisor", str(server.fileno()))
            starter = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=messages,  # not our own, which a lab that goes on would keep open
                pass_fds=[server.fileno()],
                start_new_session=True,  # ctrl-C at the terminal is for us: we end the lab
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
                starter.stdout.close()  # type: ignore[union-attr] # it was started with a pipe
            starter.returncode = 0  # it goes on without us, and nobody waits for it
        return cls.find(name)

    def status(self) -> protocol.Message:
        """Ask what there is."""
        return self._ask({"do": "status"})

    def send(self, pod: str, program: str, number: signal.Signals) -> None:
        """Send a signal to a program (`app`, `proxy`, `control-plane`) of a pod."""
        self._ask({"do": "stop", "pod": self.pod(pod)["name"], "program": program, "signal": number})

    def start(self, pod: str, program: str) -> None:
        """Start a program that has ended."""
        self._ask({"do": "start", "pod": self.pod(pod)["name"], "program": program})

    def pod(self, name: str) -> protocol.Message:
        """Tell of one pod, by its name or that of its service.

        Raises:
            InvalidInput: there is no such pod.
        """
        pods: list[protocol.Message] = self.status()["pods"]
        for pod in pods:
            if name in (pod["name"], pod["service"]):
                return pod
        raise InvalidInput("POD", f"{name!r} is not in lab {self.name!r}", ", ".join(pod["name"] for pod in pods))

    def command(self, pod: str, argv: Sequence[str], uid: int = APP_UID) -> tuple[str, ...]:
        """Give the command line that runs another one in a pod.

        Args:
            pod: its name, or that of its service.
            argv: what is run.
            uid: the user that it runs as.

        Raises:
            InvalidInput: there is no such pod.
        """
        user = argv if uid == 0 else as_user(uid, *argv)
        # First into the lab's namespaces, so that the command ends with the lab; there, the pod's process ids are known.
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
        """End the lab, and wait until all of it has gone.

        Raises:
            IstioInitError: it does not end.
        """
        ended = os.pidfd_open(self.supervisor)
        try:
            with protocol.connect(self.name) as connection:
                protocol.send(connection, {"do": "down"})
            if not select.select([ended], [], [], END_PATIENCE)[0]:
                message = f"process {self.supervisor}, the lab's first, did not end in {END_PATIENCE:g} s; kill it"
                raise IstioInitError(message)
        finally:
            os.close(ended)

    def _ask(self, message: protocol.Message) -> protocol.Message:
        with protocol.connect(self.name) as connection:
            protocol.send(connection, message)
            return protocol.receive(connection)


def _check_machine() -> None:
    if os.geteuid() != 0:
        message = "only root may make the lab's namespaces; run it with sudo"
        raise NotPermitted(message)
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        message = f"not on the PATH: {', '.join(missing)}; install util-linux"
        raise Unsupported(message)


def _wait_until_ready(starter: subprocess.Popen[bytes], settings: LabSettings, progress: Callable[[str], None]) -> None:
    with starter.stdin as stdin:  # type: ignore[union-attr] # it was started with pipes
        stdin.write(settings.to_json().encode())
    for line in starter.stdout:  # type: ignore[union-attr] # as above
        message = json.loads(line)
        if "ready" in message:
            return
        if "failed" in message:
            raise ChildFailed(message["failed"], message["exit_code"])
        progress(message["step"])
    message = "the lab ended while it was made; its own words follow"
    raise IstioInitError(message)
