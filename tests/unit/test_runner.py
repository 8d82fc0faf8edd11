"""Programs side by side: what they get, what they say, and how each way to end comes out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from istio_init.core import runner
from istio_init.core.runner import CHUNK, NOT_FOUND, Command, Result, run_all


def run(*argv: str, stdin: str = "", timeout: float = 60.0) -> Result:
    (result,) = run_all([Command(argv, stdin)], timeout, lambda _: None)
    return result


def test_a_program_gets_its_input_and_its_output_and_messages_are_kept() -> None:
    result = run("sh", "-c", "cat; echo oh dear >&2; exit 3", stdin="a\nb ü\n")
    assert not result.missing
    assert tuple(result) == (("sh", "-c", "cat; echo oh dear >&2; exit 3"), 3, "a\nb ü\n", "oh dear", "a\nb ü\n")


def test_more_than_a_pipe_holds_passes_in_both_directions() -> None:
    text = "0123456789abcde\n" * (20 * CHUNK // 16)
    assert run("tee", "/dev/stderr", stdin=text)[1:4] == (0, text, text.strip())


def test_bytes_that_are_no_text_come_out_as_they_went_in() -> None:
    text = b"\xff\xfe".decode("utf-8", "surrogateescape")
    assert run("cat", stdin=text).stdout == text


def test_a_program_that_does_not_read_its_input_may_end() -> None:
    assert run("true", stdin="x" * 4 * CHUNK).status == 0


def test_a_program_without_input_reads_its_end() -> None:
    assert run("cat")[1:3] == (0, "")


def test_a_signal_is_a_negative_status() -> None:
    assert run("sh", "-c", "kill -9 $$").status == -signal.SIGKILL


def test_a_program_that_is_not_there_is_missing() -> None:
    result = run("no-such-program-anywhere")
    assert (result.status, result.stderr, result.missing) == (None, NOT_FOUND, True)


def test_a_file_that_is_no_program_is_not_started_by_a_shell(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("echo a shell ran this\n")
    script.chmod(0o755)
    result = run(str(script))
    assert result.status is None
    assert "Exec format error" in result.stderr


def test_programs_run_side_by_side_and_each_has_its_own_result(tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    os.mkfifo(there)
    os.mkfifo(back)
    # Each waits for the other: one after the other, neither would end.
    first = Command(("sh", "-c", f"echo 1 > {there}; cat {back}; exit 1"))
    second = Command(("sh", "-c", f"cat {there}; echo 2 > {back}; exit 2"))
    results = run_all([first, Command(("no-such-program-anywhere",)), second], 60.0, lambda _: None)
    assert [result[1:3] for result in results] == [(1, "2\n"), (None, ""), (2, "1\n")]


@pytest.mark.parametrize(
    "script",
    [
        "sleep 60",  # its pipes stay open
        "exec >&- 2>&- <&-; sleep 60",  # they are closed, and it stays
        "trap '' TERM; sleep 60",
    ],
)
def test_what_does_not_end_in_time_is_killed(script: str) -> None:
    result = run("sh", "-c", script, timeout=0.3)
    assert (result.status, result.stderr) == (None, "it did not end within 0.3 s")


def test_a_program_that_ended_is_not_waited_for_because_a_child_of_its_own_keeps_its_pipes(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    started = time.monotonic()
    result = run("sh", "-c", f"echo out; echo no >&2; sleep 60 & echo $! > {pid}; exit 3", timeout=50.0)
    assert (result.status, result.stdout, result.stderr) == (3, "out\n", "no")
    assert time.monotonic() - started < 30
    assert_ended(pid)


def assert_ended(pid: Path) -> None:
    """Wait until a process is gone, or nobody has waited for it yet."""
    stat = Path("/proc") / pid.read_text().strip() / "stat"
    deadline = time.monotonic() + 30
    while stat.exists() and ") Z " not in stat.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_a_program_started_ends_with_it(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    result = run("sh", "-c", f"trap '' TERM; sleep 60 & echo $! > {pid}; wait", timeout=1.0)
    assert result.status is None
    assert_ended(pid)


def test_output_without_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "MOST_OUTPUT", 1 << 20)
    for script in ("exec yes", "yes & sleep 0.2"):
        result = run("sh", "-c", script, timeout=50.0)
        assert (result.status, result.stdout, result.stderr) == (None, "", "it wrote more than 1 MiB")
        assert result.is_fault


LEFTOVERS = """
import os
from istio_init.core import runner
from istio_init.core.runner import Command, run_all
before = os.listdir("/proc/self/fd")
for argv, timeout in ((("true",), 60.0), (("no-such-program-anywhere",), 60.0), (("sleep", "60"), 0.1)):
    run_all([Command(argv)], timeout, lambda _: None)
assert os.listdir("/proc/self/fd") == before
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("none")
"""


def test_no_end_of_a_pipe_and_no_process_is_left() -> None:
    # In a process of its own: this one may have other children.
    assert subprocess.run([sys.executable, "-c", LEFTOVERS], check=True, capture_output=True, text=True).stdout == "none\n"


def test_a_program_gets_the_default_for_signals_that_python_ignores() -> None:
    result = run("grep", "SigIgn", "/proc/self/status")
    ignored = int(result.stdout.split()[1], 16)
    assert not ignored & (1 << signal.SIGPIPE - 1)


def test_a_program_speaks_one_language_and_sees_further_variables() -> None:
    command = Command(("sh", "-c", "echo $LC_ALL $EXTRA"), environment=(("EXTRA", "more"),))
    assert run_all([command], 60.0, lambda _: None)[0].stdout == "C more\n"


def test_each_command_and_its_end_is_told() -> None:
    told: list[str] = []
    run_all([Command(("sh", "-c", "cat; echo no >&2; exit 4"), "in")], 60.0, told.append)
    assert told == ["running sh -c cat; echo no >&2; exit 4\nin", "sh -c cat; echo no >&2; exit 4: status 4 no"]


PROGRAM = """
import os
for stream in {streams}:
    os.close(stream)
from istio_init.core import runner
from istio_init.core.runner import Command, run_all
(result,) = run_all([Command(("sh", "-c", "cat; echo no >&2"), "in")], 60.0, lambda _: None)
os._exit(0 if result[1:4] == (0, "in", "no") else 1)
"""


@pytest.mark.parametrize("streams", [(0,), (1,), (2,), (0, 1), (0, 1, 2)])
def test_it_works_where_streams_of_this_process_are_closed(streams: tuple[int, ...]) -> None:
    assert subprocess.run([sys.executable, "-c", PROGRAM.format(streams=streams)], check=False).returncode == 0


def test_a_status_that_is_lost_is_no_success() -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        result = run("true")
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert result.status is None
    assert "SIGCHLD" in result.stderr
