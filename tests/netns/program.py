"""The program under test, in a process that need not start an interpreter and import everything anew.

Hundreds of tests here run the program for what it does to a namespace, and most of its time would go into its start. A
server process imports it once and forks for each run; what a run does from `main` on is the same. How the program starts,
what it imports, and which signals it heeds is for other tests, with processes of their own.
"""

from __future__ import annotations

import ctypes
import io
import multiprocessing
import os
import runpy
import subprocess
import sys
from tempfile import TemporaryFile
from typing import IO, NamedTuple

CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000  # linux/sched.h
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000  # linux/mount.h
RESOLV_CONF = "/etc/resolv.conf"
TIMEOUT = 60  # seconds

is_measured = False  # whether it is recorded which lines runs execute; see tests.measured

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["tests.netns.imported"])


class Run(NamedTuple):
    """One run of the program.

    Attributes:
        arguments: of the command line.
        environment: all of it.
        namespace: the path of the network namespace to run in.
        resolv_conf: the path of a file to find there instead of the machine's, empty for the machine's.
        stdout: the path of the file to write to.
        stderr: the same for messages.
        measured: is it recorded which lines it runs?
    """

    arguments: tuple[str, ...]
    environment: dict[str, str]
    namespace: str
    resolv_conf: str
    stdout: str
    stderr: str
    measured: bool


def run_program(
    arguments: tuple[str, ...], environment: dict[str, str], namespace: str, resolv_conf: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run the program in a network namespace, and give what came of it."""
    with TemporaryFile() as stdout, TemporaryFile() as stderr:
        run = Run(arguments, environment, namespace, resolv_conf, _path(stdout), _path(stderr), is_measured)
        process = _server.Process(target=_be_the_program, args=(run,))
        process.start()
        process.join(TIMEOUT)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(list(arguments), TIMEOUT)
        status = process.exitcode
        process.close()
        return subprocess.CompletedProcess(arguments, status, _text(stdout), _text(stderr))


def _path(file: IO[bytes]) -> str:
    return f"/proc/{os.getpid()}/fd/{file.fileno()}"


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()


def _be_the_program(run: Run) -> None:
    for number, path, mode in ((0, os.devnull, os.O_RDONLY), (1, run.stdout, os.O_WRONLY), (2, run.stderr, os.O_WRONLY)):
        os.dup2(os.open(path, mode), number)
    sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), encoding="utf-8")
    sys.stderr = io.TextIOWrapper(
        os.fdopen(2, "wb", closefd=False), encoding="utf-8", errors="backslashreplace", line_buffering=True
    )
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.setns(os.open(run.namespace, os.O_RDONLY), CLONE_NEWNET))
    if run.resolv_conf:
        _check(libc.unshare(CLONE_NEWNS))
        _check(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
        _check(libc.mount(run.resolv_conf.encode(), RESOLV_CONF.encode(), None, MS_BIND, None))
    if run.measured:
        from tests.measured import measure_this_fork

        measure_this_fork()
    os.environ.clear()
    os.environ.update(run.environment)
    sys.argv = ["istio-init", *run.arguments]
    runpy.run_module("istio_init", run_name="__main__", alter_sys=True)


def _check(status: int) -> None:
    if status != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
