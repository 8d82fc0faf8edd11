"""Running the images, as a person would who has nothing but the `docker` command."""

from __future__ import annotations

import json
import subprocess
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

INIT, PROXY, WEBHOOK, LAB = "istio-init", "istio-proxy", "istio-webhook", "istio-lab"
BUILD = "istio-build"  # the stage of the Dockerfile that the files of `init` are made in
POD = ("-p", "15001", "-u", "1337", "-m", "REDIRECT", "-i", "*", "-x", "", "-b", "9080", "-d", "")
# What README says a pod needs.
LEAST = ("--cap-drop=ALL", "--cap-add=NET_ADMIN", "--cap-add=NET_RAW", "--read-only", "--security-opt=no-new-privileges")
ADMIN_ONLY = tuple(flag for flag in LEAST if flag != "--cap-add=NET_RAW")
TIMEOUT = 60.0  # seconds

Done = subprocess.CompletedProcess[str]


def docker(*words: str, check: bool = True) -> Done:
    """Run `docker`, and give its output; with `check`, a failure is one of the test."""
    done = subprocess.run(["docker", *words], check=False, capture_output=True, text=True, timeout=300)
    assert not check or done.returncode == 0, done.stderr
    return done


def run(image: str, *command: str, flags: tuple[str, ...] = (), check: bool = True) -> Done:
    """Run an image to its end."""
    return docker("run", "--rm", *flags, image, *command, check=check)


def inspect(name: str) -> dict[str, Any]:
    """Give what the engine knows of an image or a container."""
    (found,) = json.loads(docker("inspect", name).stdout)
    known: dict[str, Any] = found
    return known


def until(what: str, look: Callable[[], object]) -> None:
    """Wait until a look is true, for as long as `TIMEOUT`."""
    deadline = time.monotonic() + TIMEOUT
    while not look():
        assert time.monotonic() < deadline, f"{what} did not come to pass"
        time.sleep(0.1)
