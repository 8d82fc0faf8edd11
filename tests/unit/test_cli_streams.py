"""Output and log that nobody reads, or that were never open."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.unit.program import POD, command, printed

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.program import Result

CLOSED = "standard output is closed, so the result cannot be printed; open it, such as with >FILE"


def with_a_reader_gone(stream: str, *arguments: str) -> Result:
    read_end, write_end = os.pipe()
    os.close(read_end)
    streams: dict[str, int] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: write_end}
    try:
        return subprocess.run(
            command(*arguments),
            check=False,
            text=True,
            env={"PATH": ""},
            timeout=60,
            stdout=streams["stdout"],
            stderr=streams["stderr"],
        )
    finally:
        os.close(write_end)


@pytest.mark.parametrize("arguments", [("-n",), ("-n", "--format", "json"), ("--help",), ("--version",)])
def test_output_that_nobody_reads_is_no_error(arguments: tuple[str, ...]) -> None:
    done = with_a_reader_gone("stdout", *arguments)
    assert (done.returncode, done.stderr) == (0, "")


def test_long_output_can_be_cut_off() -> None:
    cidrs = ",".join(f"10.{number // 250}.{number % 250}.0/24" for number in range(5000))
    cut = '"$@" | head -n 1'
    done = subprocess.run(
        ["/bin/sh", "-c", cut, "sh", *command("-n", "--format", "table")],
        check=False,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "ISTIO_SERVICE_EXCLUDE_CIDR": cidrs},
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "Layout istio-1.0\n", "")


def test_a_log_that_nobody_reads_keeps_nothing_from_being_done() -> None:
    done = with_a_reader_gone("stderr", "-n", "-b", "80", "-d", "22")
    assert (done.returncode, done.stdout) == (0, printed("-b", "80"))


def test_a_log_that_nobody_reads_does_not_change_the_exit_code() -> None:
    assert with_a_reader_gone("stderr", "-n", "-p", "0").returncode == 2


def closed(streams: str, *arguments: str, **environment: str) -> Result:
    """Run the program with standard streams that are closed from the start."""
    return subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {streams}', "sh", *command(*arguments)],
        check=False,
        capture_output=True,
        text=True,
        env={"PATH": "", **environment},
        timeout=60,
    )


@pytest.mark.parametrize("stream", ["2>&-", "<&-"])
def test_a_log_or_an_input_that_is_closed_from_the_start_is_no_error(stream: str) -> None:
    done = closed(stream, "-n", *POD)
    assert (done.returncode, done.stdout, done.stderr) == (0, printed(*POD), "")


@pytest.mark.parametrize("streams", [">&-", "<&- >&-"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("-n", *POD),
        ("-n", "--format", "json"),
        ("istio-iptables", "--dry-run"),
        ("bootstrap", "--ip", "10.1.1.1"),
        ("inject", "-f", "docker/pod.yaml"),
        ("uninject", "-f", "docker/pod.yaml"),
        ("--help",),
        ("apply", "--help"),
        ("--version",),
    ],
    ids=" ".join,
)
def test_a_result_that_cannot_be_printed_is_told(streams: str, arguments: tuple[str, ...]) -> None:
    done = closed(streams, *arguments)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"istio-init: error: {CLOSED}"


def test_a_completion_that_cannot_be_printed_is_told() -> None:
    done = closed(">&-", _ISTIO_INIT_COMPLETE="bash_source")
    assert (done.returncode, done.stderr) == (1, f"istio-init: error: {CLOSED}\n")


def test_a_result_for_a_file_needs_no_standard_output(tmp_path: Path) -> None:
    file = tmp_path / "envoy.json"
    done = closed(">&-", "bootstrap", "--ip", "10.1.1.1", "-o", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    assert file.exists()


def test_no_file_is_opened_in_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    """Else a program that is run would write its messages into a lock or a pipe."""
    opened = tmp_path / "opened"
    program = "import istio_init.__main__ as main, os, sys; main._fill_streams(); os.mkdir(f'{sys.argv[1]}{min(os.pipe())}')"
    exec_closed = 'exec "$@" <&- >&- 2>&-'
    subprocess.run(["/bin/sh", "-c", exec_closed, "sh", sys.executable, "-c", program, str(opened)], check=True, timeout=60)
    assert [directory.name for directory in tmp_path.iterdir()] == ["opened3"]
