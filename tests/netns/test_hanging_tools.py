"""Tools that hang, and signals meanwhile: each wait has an end, and what was begun is completed or rolled back."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.netns.hangs import DEATHS, HANGS, has_ended, stand_in, try_tools
from tests.netns.test_faults import everything

if TYPE_CHECKING:
    from tests.netns.namespaces import Namespace, Pod

POD = ("-p", "15001", "-u", "1337", "-i", "*", "-b", "9080")
OTHER = (*POD, "-p", "15055", "-m", "TPROXY", "--tool-timeout", "1", "--lock-wait", "0")
VARIANTS = {"nft": ("--iptables-variant", "nft"), "legacy": ("--iptables-variant", "legacy")}


def assert_ended(directory: Path) -> None:
    assert (directory / "pid").read_text().strip()
    assert has_ended(directory, 30)


@pytest.mark.parametrize("hang", HANGS.values(), ids=HANGS)
@pytest.mark.parametrize("tool", ["iptables-nft-save", "iptables-nft-restore", "ip6tables-nft-restore"])
def test_a_tool_that_hangs_is_ended_and_all_is_as_it_was(pod: Pod, tmp_path: Path, tool: str, hang: str) -> None:
    pod.inside.istio_init(*POD, environment={"ENABLE_INBOUND_IPV6": "1"})
    was = everything(pod.inside)
    environment = stand_in(tmp_path, tool, hang)
    failed = pod.inside.istio_init(*OTHER, environment=environment, check=False)
    assert failed.returncode == 4, failed.stderr
    assert f"`{tool}" in failed.stderr
    assert "it did not end within 1 s" in failed.stderr
    assert everything(pod.inside) == was
    assert_ended(tmp_path)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_a_tool_that_did_its_work_is_not_waited_for_because_of_a_child(
    pod: Pod, tmp_path: Path, variant: tuple[str, ...]
) -> None:
    tool = f"iptables-{variant[1]}-restore"
    script = f'{shutil.which(tool)} "$@"; status=$?; sleep 60 & echo $! >"$PID"; exit $status'
    pod.inside.istio_init(*variant, *POD, environment=stand_in(tmp_path, tool, script))
    assert "already in place" in pod.inside.istio_init(*variant, *POD).stderr
    assert_ended(tmp_path)


def test_nft_that_hangs_is_ended_and_legacy_is_not_written_instead(pod: Pod, tmp_path: Path) -> None:
    script = 'cat >/dev/null; echo "no such thing" >&2; exit 1'
    for tool in ("iptables-nft-restore", "iptables-legacy-restore", "ip6tables-nft-restore", "ip6tables-legacy-restore"):
        stand_in(tmp_path, tool, script)
    environment = stand_in(tmp_path, "nft", HANGS["with-a-child"])
    failed = pod.inside.istio_init(*OTHER, environment=environment, check=False)
    assert failed.returncode == 4, failed.stderr
    assert "`nft" in failed.stderr
    assert "it did not end within 1 s" in failed.stderr
    assert everything(pod.inside)[:2] == ["", ""]
    assert_ended(tmp_path)


@pytest.mark.parametrize("death", DEATHS.values(), ids=DEATHS)
@pytest.mark.parametrize("tool", ["ip6tables-nft-restore", "ip6tables-nft-save", "iptables-nft-restore"])
def test_a_tool_that_could_not_work_leaves_no_family_open_and_no_other_rule_set_written(
    pod: Pod, tmp_path: Path, tool: str, death: str
) -> None:
    pod.inside.run("ip6tables-nft", "-A", "FORWARD", "-j", "DROP")  # so that there is something to read
    was = everything(pod.inside)
    failed = pod.inside.istio_init(*POD, environment=stand_in(tmp_path, tool, f"cat >/dev/null; {death}"), check=False)
    assert failed.returncode == 4, failed.stderr
    assert f"`{tool}" in failed.stderr
    assert everything(pod.inside) == was
    assert pod.inside.save("legacy") == pod.inside.save("legacy", "ipv6") == ""


def start(
    namespace: Namespace, *words: str, environment: dict[str, str], as_first: bool
) -> tuple[subprocess.Popen[str], int]:
    """Start a run, if wanted as the first process of a PID namespace; return what was started, and the number of the run."""
    apart = ["unshare", "--pid", "--fork"] if as_first else []
    command = ["nsenter", f"--net={namespace.path}", *apart, sys.executable, "-m", "istio_init", *words]
    started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})
    hung = Path(environment["PID"])
    deadline = time.monotonic() + 30
    while not (hung.exists() and hung.read_text().strip()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    if not as_first:
        return started, started.pid
    (child,) = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
    return started, int(child)


@pytest.mark.parametrize("as_first", [False, True], ids=["process", "first-of-a-container"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_run_that_reads_at_once(pod: Pod, tmp_path: Path, number: signal.Signals, *, as_first: bool) -> None:
    pod.inside.istio_init(*POD)
    was = everything(pod.inside)
    environment = stand_in(tmp_path, "iptables-nft-save", 'echo $$ >"$PID"; exec sleep 600')
    started, pid = start(pod.inside, *POD, "--tool-timeout", "600", environment=environment, as_first=as_first)
    os.kill(pid, number)
    _, said = started.communicate(timeout=60)
    assert f"ended by signal {number:d}" in said
    assert "nothing was changed" in said
    assert started.returncode in (128 + number, -number)
    assert everything(pod.inside) == was
    if not as_first:  # the number is one of the container's
        assert_ended(tmp_path)


def test_a_signal_ends_a_run_that_waits_for_the_lock_at_once(pod: Pod, tmp_path: Path) -> None:
    environment = stand_in(tmp_path, "iptables-nft-restore", 'echo $$ >"$PID"; exec sleep 600')
    holder, holding = start(pod.inside, *POD, "--tool-timeout", "600", environment=environment, as_first=False)
    command = ["nsenter", f"--net={pod.inside.path}", sys.executable, "-m", "istio_init", *POD, "--lock-wait", "600"]
    waiting = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        time.sleep(1)  # it may wait for the lock by now; if not, the signal comes while it still starts
        waiting.terminate()
        waiting.communicate(timeout=60)
        assert waiting.returncode in (128 + signal.SIGTERM, -signal.SIGTERM)
    finally:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
        os.kill(holding, signal.SIGKILL)
        holder.communicate(timeout=60)


def test_a_signal_during_a_commit_lets_it_be_rolled_back_within_the_limit(pod: Pod, tmp_path: Path) -> None:
    pod.inside.istio_init(*POD)
    was = everything(pod.inside)
    environment = stand_in(tmp_path, "iptables-nft-restore", 'echo $$ >"$PID"; exec sleep 600')
    started, pid = start(pod.inside, *OTHER, environment=environment, as_first=False)
    os.kill(pid, signal.SIGTERM)
    started.communicate(timeout=60)
    assert started.returncode != 0
    assert everything(pod.inside) == was
    assert_ended(tmp_path)


def test_whatever_tool_hangs_or_dies_the_run_ends_in_time_and_all_is_as_it_was(pod: Pod) -> None:
    assert [trial for trial in try_tools(pod.inside, 6, seed=7) if trial.broken] == []
