"""The only place that runs programs and reads their output. No shell is ever involved.

It does not use the standard library's `subprocess`, which takes longer to import than some of the programs take to run.
"""

from __future__ import annotations

import fcntl
import os
import select
import time

from istio_init.core.light import TYPE_CHECKING, NamedTuple, signal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Observer = Callable[[str], None]

STREAMS = 3  # standard input, output and error
CHUNK = 1 << 16  # bytes; what a pipe of Linux holds
WAIT_POLL = 0.0005  # seconds
EXIT_POLL = 0.1  # seconds
KILL_TIMEOUT = 1.0  # seconds
MOST_OUTPUT = 1 << 26  # bytes; 10,000 rules are about 1 MB
INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)
NOT_FOUND = "there is no such program on the PATH"
# What errno(3) says of a shortage, and what iptables says.
SHORTAGES = (
    "Cannot allocate memory",
    "Memory allocation problem",
    "No space left on device",
    "Resource temporarily unavailable",
    "Too many open files",
    "out of memory",
)
STATUS_LOST = "its exit status is unknown, for this process was started with SIGCHLD ignored"


class Command(NamedTuple):
    """A program with its arguments, standard input, and environment variables in addition to our own."""

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
        stdin: its input.
    """

    argv: tuple[str, ...]
    status: int | None
    stdout: str
    stderr: str
    stdin: str = ""

    @property
    def missing(self) -> bool:
        """Whether the program was not found."""
        return self.status is None and self.stderr == NOT_FOUND

    @property
    def is_fault(self) -> bool:
        """Whether the program did not get to do its work, so that its failure says nothing about what is possible here."""
        if self.status is None:
            return not self.missing
        return self.status < 0 or (self.status > 0 and any(words in self.stderr for words in SHORTAGES))


class _Running:
    """A running program: our ends of its pipes, and the output so far."""

    def __init__(self, command: Command) -> None:
        """Start it; raise OSError if it cannot be started."""
        self._given = memoryview(_encode(command.stdin))
        ours, theirs = [], []
        try:
            for number in range(STREAMS):
                ends = _pipe()
                theirs.append(ends[number > 0])
                ours.append(ends[number == 0])
            self.pid = os.posix_spawnp(
                command.argv[0],
                command.argv,
                # Messages are parsed, so they must be in one language.
                {**os.environ, "LC_ALL": "C", **dict(command.environment)},
                file_actions=[(os.POSIX_SPAWN_DUP2, end, number) for number, end in enumerate(theirs)],
                setpgroup=0,  # a group of its own, so that its children can be ended with it
                setsigmask=(),
                setsigdef=IGNORED_BY_PYTHON,
            )
        except OSError:
            _close(ours)
            raise
        finally:
            _close(theirs)
        self._stdin, stdout, stderr = ours
        os.set_blocking(self._stdin, False)
        self._read: dict[int, list[bytes]] = {stdout: [], stderr: []}
        self._size = 0
        self._ended: int | None = None  # the wait status
        self.is_drained = False  # whether a child of its own outlived it
        self.open = ours

    def attend(self, end: int) -> None:
        """Read or write a ready pipe, and close it when done."""
        if end != self._stdin:
            data = os.read(end, CHUNK)
            self._read[end].append(data)
            self._size += len(data)
            is_done = not data
        else:
            is_done = self._write()
        if is_done:
            self.open.remove(end)
            os.close(end)

    def _write(self) -> bool:
        try:
            written = os.write(self._stdin, self._given[:CHUNK])
        except BlockingIOError:
            return False
        except BrokenPipeError:
            return True  # it reads no more, and its messages say why
        self._given = self._given[written:]
        return not self._given

    @property
    def is_too_much(self) -> bool:
        """Whether it wrote more than any program should."""
        return self._size > MOST_OUTPUT

    def has_exited(self) -> bool:
        """Return whether it has exited, although a child of its own may hold its pipes open.

        Raises:
            ChildProcessError: its status is lost.
        """
        if self._ended is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._ended = status if pid else None
        return self._ended is not None

    def drain(self) -> None:
        """Read what a program that has exited left in its pipes, and close them."""
        for end in [end for end in self.open if end != self._stdin]:
            os.set_blocking(end, False)
            try:
                while not self.is_too_much and (data := os.read(end, CHUNK)):
                    self._read[end].append(data)
                    self._size += len(data)
            except BlockingIOError:
                pass  # a child of its own still holds the other end
        _close(self.open)
        self.open.clear()
        self.is_drained = True

    def wait(self, deadline: float) -> int | None:
        """Wait until it exits, or until a time of the monotonic clock; None if it is still running then.

        Raises:
            ChildProcessError: its status is lost.
        """
        pause = WAIT_POLL
        while not self.has_exited():
            if time.monotonic() >= deadline:
                return None
            time.sleep(pause)
            pause *= 2
        return os.waitstatus_to_exitcode(self._ended or 0)

    def kill(self) -> None:
        """End it with all that it started, and do not wait for long for a process that the kernel cannot end."""
        _close(self.open)
        self.open.clear()
        if self._ended is not None and not self.is_drained:
            return  # nothing is left, and its number may be another's by now
        try:
            os.killpg(self.pid, signal.SIGKILL)
            self.wait(time.monotonic() + KILL_TIMEOUT)
        except (ProcessLookupError, ChildProcessError):
            pass

    def output(self) -> list[str]:
        """Return what it wrote to standard output and to standard error."""
        return [b"".join(data).decode("utf-8", "surrogateescape") for data in self._read.values()]


def run_all(commands: Sequence[Command], timeout: float, observe: Observer) -> list[Result]:
    """Run commands in parallel, and wait for all of them.

    Args:
        commands: the commands, which must not depend on each other.
        timeout: seconds that each of them may take.
        observe: receives each command line, its input, and how it ended.
    """
    deadline = time.monotonic() + timeout
    started: list[_Running | OSError] = []
    try:
        # A handler that raises between the start of a program and the note of it would leave it running.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTIONS)
        try:
            started += [_start(command, observe) for command in commands]
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _attend([one for one in started if isinstance(one, _Running)], deadline)
        results = [_finish(command, one, timeout, deadline) for command, one in zip(commands, started, strict=True)]
    except BaseException:
        for one in started:
            if isinstance(one, _Running):
                one.kill()
        raise
    for result in results:
        observe(f"{' '.join(result.argv)}: status {result.status} {result.stderr}".rstrip())
    return results


def _start(command: Command, observe: Observer) -> _Running | OSError:
    observe(f"running {' '.join(command.argv)}\n{command.stdin}".rstrip())
    try:
        return _Running(command)
    except OSError as error:
        return error


def _attend(running: Sequence[_Running], deadline: float) -> None:
    """Write to and read from programs until all of their pipes are closed, or until the deadline.

    A program that has exited, but whose child holds its pipes, is not waited for.
    """
    poll = select.poll()
    owners = {end: one for one in running for end in one.open}
    for one in running:
        for end in one.open:
            poll.register(end, select.POLLOUT if end == one.open[0] else select.POLLIN)
    while owners and (left := deadline - time.monotonic()) > 0:
        ready = poll.poll(min(left, EXIT_POLL) * 1000)
        for end, _ in ready:
            owners[end].attend(end)
        for end, one in list(owners.items()):
            if end in one.open and not ready and one.has_exited():
                one.drain()
            if end not in one.open:
                poll.unregister(end)
                del owners[end]
        if any(one.is_too_much for one in owners.values()):
            break


def _finish(command: Command, running: _Running | OSError, timeout: float, deadline: float) -> Result:
    if isinstance(running, FileNotFoundError):
        return Result(command.argv, None, "", NOT_FOUND)
    if isinstance(running, OSError):
        return Result(command.argv, None, "", str(running))
    try:
        status = None if running.open else running.wait(deadline)
    except ChildProcessError:
        return Result(command.argv, None, "", STATUS_LOST)
    running.kill()
    if running.is_too_much:
        return Result(command.argv, None, "", f"it wrote more than {MOST_OUTPUT >> 20} MiB")
    if status is None:
        return Result(command.argv, None, "", f"it did not end within {timeout:g} s")
    stdout, stderr = running.output()
    return Result(command.argv, status, stdout, stderr.strip(), command.stdin)


def _pipe() -> list[int]:
    """Create a pipe whose ends do not take the place of the three streams, which may be closed in this process."""
    ends = os.pipe()
    raised = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, STREAMS) for end in ends]
    _close(ends)
    return raised


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _close(ends: Sequence[int]) -> None:
    for end in ends:
        os.close(end)
