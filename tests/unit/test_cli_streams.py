"""Output and log that nobody reads, or that were never open."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.unit.program import POD, command, printed

if TYPE_CHECKING:
    from tests.unit.program import Result


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


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-"])
def test_a_stream_that_is_closed_from_the_start_is_no_error(closed: str) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", *command("-n", *POD)],
        check=False,
        capture_output=True,
        text=True,
        env={"PATH": ""},
        timeout=60,
    )
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout == ("" if closed == ">&-" else printed(*POD))
