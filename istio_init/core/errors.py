"""The exceptions of this package, one exit code a class.

::

    IstioInitError                1  anything else
    ├── InvalidInput              2  a flag, variable, file or argument is wrong; nothing was touched
    ├── NotPermitted              3  CAP_NET_ADMIN (or CAP_NET_RAW) is missing
    ├── Unsupported               4  the kernel or a tool cannot do what the plan needs
    │   └── CommandError          4  a tool failed: carries argv, exit status and standard error
    │       └── ToolFault         4  a tool was killed, hung, or ran out of something
    ├── LockHeld                  5  another program holds the lock, and the wait for it is over
    ├── Ended                 128 and the signal's number: a signal came before anything was changed
    ├── ValidationFailed        126  rules are not what they should be: connections go elsewhere
    └── ChildFailed               its own: a program that was run for the user failed for good
"""

from __future__ import annotations

MESSAGE_LENGTH = 300  # characters; our own messages are shorter, so what is longer has a long value
ENDING = {1: "SIGHUP", 15: "SIGTERM"}  # signal(7)
KEPT = 80  # characters at each end of what is longer


def shorten(message: str) -> str:
    """Shorten the middle of a message with a long value, so that its beginning, and what is wrong with it, stay readable."""
    return message if len(message) <= MESSAGE_LENGTH else f"{message[:KEPT]}…{message[-KEPT:]}"


def shorten_words(message: str) -> str:
    """Put a message on one line, and shorten its long words, such as the values in messages of the system."""
    return " ".join(map(shorten, message.split()))


class IstioInitError(Exception):
    """The base of every error that this package raises on purpose."""

    exit_code = 1


class InvalidInput(IstioInitError):
    """A value that a user gave is not allowed.

    Args:
        where: the flag, variable or file and line that gave the value, as the user wrote it.
        problem: what is wrong with the value, the value included; a long one is shortened.
        allowed: what would be accepted, or what to do.
    """

    exit_code = 2

    def __init__(self, where: str, problem: str, allowed: str) -> None:
        where, problem = shorten(where), shorten(problem)
        super().__init__(f"{where}: {problem} (allowed: {allowed})")
        self.where = where
        self.problem = problem
        self.allowed = allowed


class NotPermitted(IstioInitError):
    """The process lacks a capability that the change requires."""

    exit_code = 3


class Unsupported(IstioInitError):
    """The kernel, or a tool on this machine, cannot do what the plan needs."""

    exit_code = 4


class CommandError(Unsupported):
    """A program that was started failed.

    Args:
        argv: the program and its arguments.
        status: its exit status; negative for a signal, None when it could not be started or did not end in time.
        stderr: what it wrote to standard error, stripped.
        remedy: what the user can do about it.
    """

    def __init__(self, argv: tuple[str, ...], status: int | None, stderr: str, remedy: str) -> None:
        ended = "did not run to its end" if status is None else f"exited with status {status}"
        super().__init__(f"`{' '.join(argv)}` {ended}: {stderr or 'no message'}; {remedy}")
        self.argv = argv
        self.status = status
        self.stderr = stderr
        self.remedy = remedy


class ToolFault(CommandError):
    """A program did not get to do its work: it was killed, did not end in time, or lacked memory, processes or space.

    That says nothing about what this machine can do, so nothing else may be tried in its place.
    """


class LockHeld(IstioInitError):
    """Another program holds the lock that a change requires, and did not release it in time."""

    exit_code = 5


class Ended(IstioInitError):
    """A signal ended a run before it changed anything.

    Args:
        number: the signal's; the exit code is 128 more, as shells have it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by signal {number} ({ENDING[number]}); nothing was changed")
        self.exit_code = 128 + number


class ValidationFailed(IstioInitError):
    """Probed connections did not go where the rules should send them, or could not be probed at all."""

    exit_code = 126  # what today's `istio-iptables` ends with, and what its CNI plugin's repair looks for


class ChildFailed(IstioInitError):
    """A program that was run for the user failed for good; its exit code is handed on.

    Args:
        message: which program, how it ended, and what to do about it.
        exit_code: its own, as shells have it: 128 and the signal's number for a signal.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
