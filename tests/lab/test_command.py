"""`istio-init lab`, as a person uses it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from istio_init.lab.client import Lab
from istio_init.lab.settings import LabSettings
from tests.lab.live import wait_for
from tests.netns.namespaces import tables_in

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = f"command-{os.getpid()}"
ENGINES = ("containerd", "docker", "runc")
SUPERVISOR = "istio_init.lab.supervisor"
# No control plane listens there, so no proxy gets ready.
NEVER_READY = (sys.executable, "-m", "istio_init", "lab", "up", "--name", NAME, "--proxy", "--discoveryGrpcPort 1")


def lab(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "istio_init", "lab", words[0], "--name", NAME, *words[1:]]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=90)
    assert not check or done.returncode == 0, done.stderr
    return done


def of_this_machine() -> tuple[object, ...]:
    """Give what a lab could leave behind: interfaces, rules, mounts, named namespaces, files."""

    def shown(*tool: str) -> str:
        return subprocess.run(tool, check=True, capture_output=True, text=True).stdout

    seen = [shown("ip", "-o", "link"), shown("ip", "rule"), shown("ip", "netns"), tables_in(shown("iptables-nft-save"))]
    # Container engines come and go; a lab's mounts are neither overlays nor, below /run, anything else of theirs.
    places = [
        sorted(file for file in Path(place).iterdir() if file.name not in ENGINES)
        for place in ("/run", "/etc", "/usr/local/bin", "/dev/shm")
    ]
    mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    own = [line for line in mounts if line.split()[2] not in ("overlay", "nsfs") or line.split()[1].startswith("/run/")]
    return (*seen, own, *places)


def processes() -> list[str]:
    """List the processes of labs of this test: those that work where it does."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().decode(errors="replace").split("\0")
            ours = (place / "cwd").readlink() == Path.cwd()
        except OSError:  # it has ended
            continue
        if ours and (SUPERVISOR in words or "istio_init.lab.sandbox" in words):
            found.append(place.name)
    return found


@pytest.fixture
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)  # no other lab's: those of other tests may be up at the same time
    before = of_this_machine()
    yield
    wait_for("the end of all processes", lambda: not processes())
    assert of_this_machine() == before


@pytest.mark.usefixtures("nothing_is_left")
def test_a_lab_is_made_entered_looked_at_and_ended() -> None:
    made = lab("up", "--pods", "3", "-x", "10.96.0.12/32", "--listeners", "current")
    assert "details-v1 10.244.0.12" in made.stderr
    try:
        answer = lab("exec", "productpage", "--", "curl", "-sS", "http://reviews:9080/")
        assert '"service": "reviews"' in answer.stdout
        assert lab("exec", "--user", "0", "reviews", "--", "id", "-u").stdout == "0\n"
        assert lab("exec", "reviews-v1", "--", "sh", "-c", "exit 7", check=False).returncode == 7
        excluded = lab("exec", "productpage", "--", "curl", "-sS", "--max-time", "2", "http://details:9080/", check=False)
        assert excluded.returncode != 0, "nothing has the address of a service, and nobody took the connection"
        shown = lab("status").stdout
        for word in ("listeners: current", "-z 15006", "-x 10.96.0.12/32", "reviews-v1  10.244.0.11", "LDS accepted"):
            assert word in shown
        again = lab("up", check=False)
        assert (again.returncode, "is already up" in again.stderr) == (1, True)
        nowhere = lab("exec", "nobody", "--", "true", check=False)
        assert nowhere.returncode == 2
        assert "productpage-v1, reviews-v1, details-v1" in nowhere.stderr
    finally:
        lab("down")
    assert lab("status", check=False).returncode == 1


@pytest.mark.usefixtures("nothing_is_left")
def test_nothing_is_left_when_the_lab_crashes() -> None:
    crashed = Lab.up(NAME, LabSettings(pods=1), lambda _: None)
    assert len(processes()) >= 4
    os.kill(crashed.supervisor, signal.SIGKILL)


@pytest.mark.usefixtures("nothing_is_left")
@pytest.mark.parametrize(
    "step", ["creating namespaces", "running istio-init", "starting control plane", "waiting for Envoys"]
)
def test_nothing_is_left_when_it_is_interrupted_while_it_is_made(step: str) -> None:
    with subprocess.Popen(NEVER_READY, stderr=subprocess.PIPE, text=True) as starting:
        assert starting.stderr
        assert any(step in line for line in starting.stderr)
        starting.send_signal(signal.SIGINT)
        _, stderr = starting.communicate(timeout=30)
    assert starting.returncode == 130
    assert "interrupted" in stderr


@pytest.mark.usefixtures("nothing_is_left")
@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--pods", "0"), "--pods"),
        (("-p", "x"), "-p"),
        (("--proxy", "'"), "--proxy"),
        (("-m", "x"), "-m"),
        (("--ip-families", "IPv5"), "--ip-families"),
        (("--ip-families", "ipv6"), "--layout istio-1.30"),
        (("--ip-families", "IPv4,IPv6"), "--layout istio-1.30"),
    ],
)
def test_bad_input_is_refused_before_anything_is_made(flags: tuple[str, ...], named: str) -> None:
    failed = lab("up", *flags, check=False)
    assert failed.returncode == 2
    assert named in failed.stderr
    assert len(failed.stderr.splitlines()) == 1


@pytest.mark.usefixtures("nothing_is_left")
def test_a_proxy_that_refuses_its_flags_is_told() -> None:
    failed = lab("up", "--proxy", "--drainDuration 0s", check=False)
    assert failed.returncode == 2
    assert "--drainDuration" in failed.stderr
    assert "namespaces" not in failed.stderr


@pytest.mark.usefixtures("nothing_is_left")
def test_rules_and_proxies_that_do_not_fit_are_told() -> None:
    shown = lab("up", "--no-wait", "-p", "15002").stderr
    try:
        assert "warning: -p" in shown
        assert f"istio-init lab down --name {NAME}" in shown
    finally:
        lab("down")


@pytest.mark.usefixtures("nothing_is_left")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_when_the_command_ends_while_proxies_are_waited_for(number: signal.Signals) -> None:
    with subprocess.Popen(NEVER_READY, stderr=subprocess.PIPE, text=True) as starting:
        assert starting.stderr
        for line in starting.stderr:
            if "configuration" in line:
                break
        starting.send_signal(number)
        starting.wait(timeout=30)
    assert starting.returncode == -number
