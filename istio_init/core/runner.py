"""The only place that starts a process. No shell is ever involved."""

import os
import subprocess
from collections.abc import Callable, Sequence
from typing import NamedTuple

Observer = Callable[[str], None]


class Command(NamedTuple):
    """A program with its arguments, what it gets on standard input, and variables besides our own."""

    argv: tuple[str, ...]
    stdin: str = ""
    environment: tuple[tuple[str, str], ...] = ()


class Result(NamedTuple):
    """How a command ended.

    Attributes:
        argv: what was run.
        status: the exit status; negative for a signal, None when it could not be started or did not end in time.
        stdout: its output.
        stderr: its messages, stripped; where `status` is None, the reason.
        stdin: what it was given.
    """

    argv: tuple[str, ...]
    status: int | None
    stdout: str
    stderr: str
    stdin: str = ""

    @property
    def missing(self) -> bool:
        """Whether there is no such program."""
        return self.status is None and self.stderr == NOT_FOUND


NOT_FOUND = "there is no such program on the PATH"


def run_all(commands: Sequence[Command], timeout: float, observe: Observer) -> list[Result]:
    """Run commands side by side, and wait for all of them.

    Args:
        commands: each of them must do without the others' results.
        timeout: seconds that each of them may take.
        observe: is told each command line, its input, and how it ended.
    """
    started = [_start(command, observe) for command in commands]
    results = [_finish(command, process, timeout) for command, process in zip(commands, started, strict=True)]
    for result in results:
        observe(f"{' '.join(result.argv)}: status {result.status} {result.stderr}".rstrip())
    return results


def _start(command: Command, observe: Observer) -> "subprocess.Popen[str] | OSError":
    observe(f"running {' '.join(command.argv)}\n{command.stdin}".rstrip())
    try:
        return subprocess.Popen(
            command.argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="surrogateescape",
            # Messages are looked at, so they must be in one language.
            env={**os.environ, "LC_ALL": "C", **dict(command.environment)},
        )
    except OSError as error:
        return error


def _finish(command: Command, process: "subprocess.Popen[str] | OSError", timeout: float) -> Result:
    if isinstance(process, FileNotFoundError):
        return Result(command.argv, None, "", NOT_FOUND)
    if isinstance(process, OSError):
        return Result(command.argv, None, "", str(process))
    try:
        stdout, stderr = process.communicate(command.stdin, timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return Result(command.argv, None, "", f"it did not end within {timeout:g} s")
    return Result(command.argv, process.returncode, stdout, stderr.strip(), command.stdin)
