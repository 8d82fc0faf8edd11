"""The script that brings its own container engine leaves nothing behind, however it ends.

Programs that do nothing stand in for the engine; what makes the base image never ends by itself.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.privileges import give_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[1]
PROGRAMS = ("dockerd", "docker", "docker-compose", "podman", "netavark", "aardvark-dns", "newuidmap", "catatonit", "runc")
ENDLESS = '#!/bin/sh\necho $$ >"$STARTED"\nsleep 120 &\nwait\n'
TIMEOUT = 15.0  # seconds; a signal that waits for the step's end would take longer


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    if os.geteuid() != 0:
        give_up("only root can start a container engine")
    for directory in ("scripts", "docker", "bin", "cache", "temporary"):
        (tmp_path / directory).mkdir()
    shutil.copy(ROOT / "scripts" / "test-docker", tmp_path / "scripts")
    for file in ROOT.glob("docker/requirements-*.txt"):
        shutil.copy(file, tmp_path / "docker")
    texts = dict.fromkeys((f"bin/{program}" for program in PROGRAMS), "#!/bin/sh\n")
    for name, text in (texts | {"bin/debootstrap": ENDLESS, "scripts/setup": "#!/bin/sh\n"}).items():
        (tmp_path / name).write_text(text, encoding="ascii")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def environment(checkout: Path) -> dict[str, str]:
    """Give the script places of its own: runs elsewhere on the machine remove what killed runs left in theirs."""
    return {
        "PATH": f"{checkout}/bin:{os.environ['PATH']}",
        "TMPDIR": str(checkout / "temporary"),
        "XDG_CACHE_HOME": str(checkout / "cache"),
    }


@contextmanager
def running(checkout: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run the script as far as the base image; give it and the number of the process that makes that."""
    started = checkout / "started"
    started.unlink(missing_ok=True)
    env = environment(checkout) | {"STARTED": str(started)}
    with subprocess.Popen([checkout / "scripts" / "test-docker"], env=env, stderr=subprocess.DEVNULL) as script:
        try:
            until(lambda: started.exists() and started.read_text().strip())
            yield script, int(started.read_text())
        finally:
            script.kill()
            with suppress(FileNotFoundError, ProcessLookupError):
                os.killpg(int(started.read_text()), signal.SIGKILL)


def until(look: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def places(checkout: Path, script: subprocess.Popen[bytes]) -> list[Path]:
    return list((checkout / "temporary").glob(f"istio-init-docker.{script.pid}.*"))


def session(leader: int) -> list[str]:
    """List the processes that a step consists of."""
    done = subprocess.run(["ps", "-o", "stat=", "-s", str(leader)], check=False, capture_output=True, text=True)
    return [line for line in done.stdout.split() if not line.startswith("Z")]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_ends_a_long_step_at_once_and_leaves_nothing(checkout: Path, number: signal.Signals) -> None:
    with running(checkout) as (script, step):
        assert len(places(checkout, script)) == 1
        assert len(session(step)) == 2
        script.send_signal(number)
        assert script.wait(TIMEOUT) == 128 + number
        assert session(step) == []
    assert places(checkout, script) == []
    assert list((checkout / "cache" / "istio-init").iterdir()) == []
    assert not (checkout / "docker" / "wheels").exists()


def test_what_a_killed_run_left_is_removed_by_the_next(checkout: Path) -> None:
    with running(checkout) as (killed, step):
        killed.kill()
        killed.wait()
        until(lambda: not Path("/proc", str(step)).exists())
    assert len(places(checkout, killed)) == 1
    with running(checkout) as (script, _):
        assert places(checkout, killed) == []
        script.terminate()
        assert script.wait(TIMEOUT) == 128 + signal.SIGTERM


def test_two_runs_in_one_checkout_wait_for_each_other(checkout: Path) -> None:
    with running(checkout) as (script, _):
        with subprocess.Popen(
            [checkout / "scripts" / "test-docker"], env=environment(checkout), stderr=subprocess.PIPE
        ) as other:
            assert other.stderr is not None
            assert b"waiting for another run in this checkout" in other.stderr.readline()
            other.terminate()
            assert other.wait(TIMEOUT) == -signal.SIGTERM
        script.terminate()
        assert script.wait(TIMEOUT) == 128 + signal.SIGTERM
