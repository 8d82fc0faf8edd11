"""Reads files that users name, within limits of time and size.

A name can stand for anything: a FIFO that nobody writes to, a device without an end, a file of many gigabytes. Process
substitution (`<(command)`) and /dev/stdin are pipes, which are read for as long as somebody may write to them.
"""

from __future__ import annotations

import os
import stat

from istio_init.core.errors import InvalidInput, shorten

MAX_SIZE = 16 * 1024 * 1024  # bytes; the largest file that is of any use here, a list of ten thousand CIDRs, has 0.2 MB
CHUNK = 1024 * 1024  # bytes
SILENCE_TIMEOUT = 30.0  # seconds
TOO_LARGE = f"it has more than {MAX_SIZE // 1024 // 1024} MiB"
ALLOWED = f"a readable file or pipe of at most {MAX_SIZE // 1024 // 1024} MiB"
# A FIFO without a writer must not delay opening it, nor may a terminal become that of this process.
HOW = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK


def read_file(path: str, where: str) -> bytes:
    """Read a file, a pipe or a device to its end.

    Args:
        path: its path.
        where: the flag or variable that named it, for the error.

    Raises:
        InvalidInput: it cannot be read, is larger than `MAX_SIZE`, or stays silent for `SILENCE_TIMEOUT`.
    """
    try:
        file = os.open(path, HOW)
        try:
            return read_all(file, _silence_timeout(file))
        finally:
            os.close(file)
    except (OSError, ValueError) as error:
        raise InvalidInput(where, f"cannot read {shorten(path)!r}: {_reason(error)}", ALLOWED) from None


def read_all(file: int, silence_timeout: float | None = None) -> bytes:
    """Read an open file to its end.

    Args:
        file: its descriptor.
        silence_timeout: seconds to wait for a FIFO's first data, and for all of a device's; None waits for the writers' end.

    Raises:
        OSError: it cannot be read, or stays silent for that long.
        ValueError: it is larger than `MAX_SIZE`.
    """
    status = os.fstat(file)
    if status.st_size > MAX_SIZE:
        raise ValueError(TOO_LARGE)
    chunks: list[bytes] = []
    size = 0
    while True:
        if not stat.S_ISREG(status.st_mode):
            _wait(file, None if chunks and stat.S_ISFIFO(status.st_mode) else silence_timeout)
        chunk = os.read(file, CHUNK)
        if not chunk:
            return b"".join(chunks)
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_SIZE:
            raise ValueError(TOO_LARGE)


def _wait(file: int, silence_timeout: float | None) -> None:
    """Wait until there is something to read, or the end of it."""
    from select import POLLIN, poll  # only here, as most files are regular

    waiting = poll()
    waiting.register(file, POLLIN)
    if not waiting.poll(None if silence_timeout is None else silence_timeout * 1000):
        raise TimeoutError(f"nothing came for {silence_timeout:g} s")


def _silence_timeout(file: int) -> float | None:
    """Return how long to wait for a file that was opened by its name.

    The end of a pipe without a name shows as soon as its last writer is gone. A FIFO may not have had one yet, and then
    its end cannot be told from silence.
    """
    try:
        is_pipe = os.readlink(f"/proc/self/fd/{file}").startswith("pipe:")
    except OSError:  # no /proc
        is_pipe = False
    return None if is_pipe else SILENCE_TIMEOUT


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)
