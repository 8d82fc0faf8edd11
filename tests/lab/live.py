"""A lab that is up, with what tests ask of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from istio_init.lab.client import Lab
from istio_init.lab.pods import CONTROL, PROXY, WORLD
from istio_init.lab.settings import APP_UID, CONTROL_PLANE, LabSettings

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterator

TIMEOUT = 20.0  # seconds
POLL = 0.05  # seconds
ADMIN = "http://127.0.0.1:15000"
NUMBER = count()


class Live(NamedTuple):
    """A lab, entered as a user would."""

    lab: Lab

    def run(
        self, pod: str, *argv: str, uid: int = APP_UID, check: bool = True, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in a pod."""
        command = self.lab.command(pod, argv, uid)
        done = subprocess.run(command, check=False, capture_output=True, text=True, input=stdin, timeout=60)
        assert not check or done.returncode == 0, f"{argv} in {pod}: {done.stderr}"
        return done

    def curl(self, pod: str, url: str, *flags: str, uid: int = APP_UID, check: bool = True) -> str:
        """Ask an HTTP server, from a pod."""
        return self.run(pod, "curl", "-sS", "--max-time", "10", "--fail", *flags, url, uid=uid, check=check).stdout

    def app(self, pod: str, url: str, *flags: str) -> dict[str, Any]:
        """Ask a demo app, from a pod's app."""
        answer: dict[str, Any] = json.loads(self.curl(pod, url, *flags))
        return answer

    def stat(self, pod: str, name: str) -> int:
        """Give one of Envoy's statistics; 0 where there is none of that name."""
        text = self.curl(pod, f"{ADMIN}/stats?filter=^{re.escape(name)}$".replace("|", "%7C").replace("\\", "%5C"))
        return sum(int(line.rpartition(": ")[2]) for line in text.splitlines() if line.startswith(f"{name}: "))

    def admin(self, pod: str, path: str) -> dict[str, Any]:
        """Ask Envoy's administration."""
        answer: dict[str, Any] = json.loads(self.curl(pod, ADMIN + path))
        return answer

    def program(self, pod: str, name: str = PROXY) -> dict[str, Any]:
        """Tell of a program of a pod: its process id, its status if it has ended, its log."""
        program: dict[str, Any] = self.lab.pod(pod)["programs"][name]
        return program

    def log(self, pod: str, name: str = PROXY) -> str:
        """Read the log of a program."""
        return self.run(pod, "cat", self.program(pod, name)["log"], uid=0).stdout

    def send(self, pod: str, number: signal.Signals, name: str = PROXY) -> None:
        """Send a signal to a program of a pod."""
        self.lab.send(pod, name, number)

    def start(self, pod: str, name: str = PROXY) -> None:
        """Wait for the end of a program, and start it again."""
        wait_for(f"{name} of {pod} ends", lambda: self.program(pod, name)["status"] is not None)
        self.lab.start(pod, name)

    def stop_control_plane(self, number: signal.Signals) -> None:
        """End the control plane."""
        self.send(CONTROL_PLANE, number, CONTROL)
        wait_for("the control plane ends", lambda: self.program(CONTROL_PLANE, CONTROL)["status"] is not None)

    def start_control_plane(self) -> None:
        """Start the control plane again."""
        self.lab.start(CONTROL_PLANE, CONTROL)

    def serve(self, change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Change what the control plane serves, and give what it served before."""
        before: dict[str, Any] = json.loads(self.run(CONTROL_PLANE, "cat", str(WORLD), uid=0).stdout)
        after = json.loads(json.dumps(before))
        change(after)
        move = f"cat > {WORLD}.new && mv {WORLD}.new {WORLD}"
        self.run(CONTROL_PLANE, "sh", "-c", move, uid=0, stdin=json.dumps(after))
        return before

    def discovery(self, pod: str) -> dict[str, Any]:
        """Tell what the control plane knows of a pod's proxy."""
        found = [how for node, how in self.lab.status()["discovery"].items() if f"~{pod}." in node]
        return found[0] if found else {}


def wait_for(what: str, condition: Callable[[], object], timeout: float = TIMEOUT) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"still waiting: {what}"
        time.sleep(POLL)


@contextmanager
def live(settings: LabSettings) -> Iterator[Live]:
    """Make a lab for as long as it is needed."""
    steps: list[str] = []
    lab = Lab.up(f"test-{os.getpid()}-{next(NUMBER)}", settings, steps.append)
    assert steps, "each step is told"
    try:
        yield Live(lab)
    finally:
        lab.down()
        wait_for("the end of the lab", lambda: not Path(f"/proc/{lab.supervisor}").exists())
