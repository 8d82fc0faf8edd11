"""Files that users name: read with a clear error, written whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from istio_init.core.errors import InvalidInput

PUBLIC = 0o644
PRIVATE = 0o600
PRIVATE_DIRECTORY = 0o700


def read_text(path: str, where: str) -> str:
    """Read a text file.

    Args:
        path: the file.
        where: the flag or variable that named it.

    Raises:
        InvalidInput: the file cannot be read, or is no UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InvalidInput(where, f"cannot read {path!r}: {error}", "the path of a readable text file") from None


def read_bytes(path: str, where: str) -> bytes:
    """Read a file as it is, for what must keep its line breaks; otherwise as `read_text`."""
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise InvalidInput(where, f"cannot read {path!r}: {error}", "the path of a readable text file") from None


def decode(data: bytes, path: str, where: str) -> str:
    """Read bytes as UTF-8.

    Raises:
        InvalidInput: they are none; `path` is where they come from.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(where, f"cannot read {path!r}: {error}", "UTF-8") from None


def write_text(path: str, text: str, where: str, mode: int = PUBLIC) -> None:
    """Write a whole file or none: a reader never sees half of it. A device or a pipe stays what it is.

    Args:
        path: the file.
        text: what is to be in it.
        where: the flag that named it.
        mode: of a file that is written.

    Raises:
        InvalidInput: the file cannot be written; `where` is the flag that named it.
    """
    file = Path(path)
    try:
        if _is_special(file):
            file.write_text(text, encoding="utf-8")
        else:
            _replace(file.resolve(), text, mode)
    except OSError as error:
        raise InvalidInput(where, f"cannot write {path!r}: {error}", "a file in a directory that is there") from None


def make_private_directory(path: str, where: str) -> None:
    """Make a directory for this user alone; one that is there stays as it is.

    Raises:
        InvalidInput: it cannot be made; `where` is the flag that named it.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).mkdir(mode=PRIVATE_DIRECTORY, exist_ok=True)
    except OSError as error:
        raise InvalidInput(where, f"cannot make {path!r}: {error}", "a directory that this user may make") from None


def _is_special(path: Path) -> bool:
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:  # a loop of links is another error
        return False


def _replace(path: Path, text: str, mode: int) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.touch(PRIVATE)
        temporary.write_text(text, encoding="utf-8")
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
