"""Files that users name: none keeps the program waiting for ever, or fills its memory."""

from __future__ import annotations

import os
import pty
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from istio_init.cli import main
from istio_init.core import reading
from istio_init.core.errors import InvalidInput
from istio_init.core.reading import MAX_SIZE, read_all, read_file
from tests.unit.program import command

if TYPE_CHECKING:
    from collections.abc import Callable

POD = Path("docker/pod.yaml")
SILENCE = 0.3  # seconds
INPUTS = {
    "inject -f": ("inject", "-f"),
    "uninject -f": ("uninject", "-f"),
    "bootstrap --manifest": ("bootstrap", "--manifest"),
    "bootstrap --bootstrap-override": ("bootstrap", "--ip", "10.1.1.1", "--bootstrap-override"),
    "bootstrap --customConfigFile": ("bootstrap", "--ip", "10.1.1.1", "--customConfigFile"),
    "webhook --tls-cert": ("inject", "--webhook", "--webhook-port=0", "--tls-key", "/dev/null", "--tls-cert"),
    "webhook --tls-key": ("inject", "--webhook", "--webhook-port=0", "--tls-cert", "/dev/null", "--tls-key"),
    "$ISTIO_CLUSTER_CONFIG": ("apply", "--dry-run"),
    "istio-iptables $ISTIO_CLUSTER_CONFIG": ("istio-iptables", "--layout", "istio-1.0", "--dry-run"),
}


@pytest.fixture(autouse=True)
def _little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "SILENCE_TIMEOUT", SILENCE)


def fifo(directory: Path) -> Path:
    path = directory / "fifo"
    os.mkfifo(path)
    return path


def bound_socket(directory: Path) -> Path:
    path = directory / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    return path


def directory(directory: Path) -> Path:
    return directory


def sparse(directory: Path) -> Path:
    """Make a file that is larger than any machine's memory."""
    path = directory / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 42)
    return path


def zeros(_: Path) -> Path:
    return Path("/dev/zero")


STRANGE: dict[str, Callable[[Path], Path]] = {
    "a FIFO without a writer": fifo,
    "a socket": bound_socket,
    "a directory": directory,
    "a file of 4 TiB": sparse,
    "a device without an end": zeros,
}


def refused(path: str) -> str:
    with pytest.raises(InvalidInput) as error:
        read_file(path, "--input")
    assert error.value.allowed == "a readable file or pipe of at most 16 MiB"
    return error.value.problem


def written(path: Path, *parts: bytes, pause: float) -> threading.Thread:
    """Write to a FIFO in another thread, with a pause before each part but the first."""

    def write() -> None:
        with path.open("wb", buffering=0) as file:
            for number, part in enumerate(parts):
                time.sleep(pause if number else 0)
                file.write(part)

    writer = threading.Thread(target=write)
    writer.start()
    return writer


@pytest.mark.parametrize("content", [b"", b"a\r\nb\0\xff", b"x" * MAX_SIZE], ids=["empty", "bytes", "as large as allowed"])
def test_a_regular_file_is_read_as_it_is(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(content)
    assert read_file(str(file), "--input") == content


def test_files_without_a_size_are_read() -> None:
    assert read_file("/proc/version", "--input") == Path("/proc/version").read_bytes()
    assert read_file("/dev/null", "--input") == b""


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("a FIFO without a writer", "nothing came for 0.3 s"),
        ("a socket", "No such device or address"),
        ("a directory", "Is a directory"),
        ("a file of 4 TiB", "it has more than 16 MiB"),
        ("a device without an end", "it has more than 16 MiB"),
    ],
)
def test_what_is_no_file_of_text_is_refused_with_the_reason(kind: str, problem: str, tmp_path: Path) -> None:
    path = str(STRANGE[kind](tmp_path))
    assert refused(path) == f"cannot read {path!r}: {problem}"


def test_a_file_with_one_byte_too_many_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"x" * (MAX_SIZE + 1))
    assert "it has more than 16 MiB" in refused(str(file))


def test_a_path_that_no_file_can_have_is_refused() -> None:
    assert "embedded null byte" in refused("a\0b")
    assert len(refused("x" * 5000)) < 400


def test_a_fifo_is_read_until_its_writer_closes_it_however_slow_it_is(tmp_path: Path) -> None:
    path = fifo(tmp_path)
    writer = written(path, b"one ", b"two ", b"three", pause=SILENCE * 1.5)
    assert read_file(str(path), "--input") == b"one two three"
    writer.join()


def test_a_pipe_is_waited_for_as_long_as_somebody_may_write_to_it() -> None:
    reader, writer = os.pipe()

    def write() -> None:
        time.sleep(SILENCE * 2)
        os.write(writer, b"late")
        os.close(writer)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert read_file(f"/dev/fd/{reader}", "--input") == b"late"
    finally:
        os.close(reader)
        thread.join()


def test_a_terminal_at_which_nobody_types_is_refused() -> None:
    main_end, terminal = pty.openpty()
    try:
        assert "nothing came for 0.3 s" in refused(os.ttyname(terminal))
    finally:
        os.close(main_end)
        os.close(terminal)


def test_standard_input_is_bounded_in_size_alone() -> None:
    with Path("/dev/zero").open("rb") as zeros, pytest.raises(ValueError, match="it has more than 16 MiB"):
        read_all(zeros.fileno())


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("given", INPUTS)
def test_every_input_is_bounded(
    given: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(STRANGE[kind](tmp_path))
    monkeypatch.setenv("ISTIO_CLUSTER_CONFIG", path if given.endswith("CONFIG") else "/dev/null")
    monkeypatch.setenv("ISTIO_SIDECAR_CONFIG", "/dev/null")
    words = INPUTS[given] if given.endswith("CONFIG") else (*INPUTS[given], path)
    assert main.run(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("istio-init: error: ")
    assert "(allowed: " in line


@pytest.mark.parametrize(
    "script",
    [
        '"$@" -f <(sleep 0.3; cat docker/pod.yaml)',
        'sleep 0.3 | cat - docker/pod.yaml | "$@" -f /dev/stdin',
        '"$@" -f /dev/stdin <docker/pod.yaml',
        'cat docker/pod.yaml | "$@" -f -',
        '"$@" -f - <docker/pod.yaml',
        '"$@" <(cat docker/pod.yaml)',
    ],
)
def test_pipes_of_a_shell_are_read(script: str) -> None:
    done = subprocess.run(
        ["bash", "-c", script, "bash", *command("uninject")], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == POD.read_text(encoding="utf-8")


def test_a_standard_input_without_an_end_is_refused() -> None:
    with Path("/dev/zero").open("rb") as zeros:
        done = subprocess.run(
            command("inject", "-f", "-"), check=False, stdin=zeros, capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 2
    assert done.stderr.startswith("istio-init: error: -f/--filename: cannot read standard input: it has more than 16 MiB")


def test_what_is_no_regular_file_is_not_updated_in_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = fifo(tmp_path)
    writer = written(path, POD.read_bytes(), pause=0)
    assert main.run(("inject", "--in-place", "-f", str(path))) == 2
    writer.join()
    assert f"--in-place: {path} cannot be updated in place (allowed: regular files)" in capsys.readouterr().err
