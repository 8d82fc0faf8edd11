"""User-specified files: readable errors, atomic writes."""

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
        where: the flag or variable that specified it, for the error.

    Raises:
        InvalidInput: the file cannot be read or is not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InvalidInput(where, f"cannot read {path!r}: {error}", "the path of a readable text file") from None


def read_bytes(path: str, where: str) -> bytes:
    """Read a file without newline translation; see `read_text` for arguments and errors."""
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise InvalidInput(where, f"cannot read {path!r}: {error}", "the path of a readable text file") from None


def decode(data: bytes, path: str, where: str) -> str:
    """Decode the contents of `path` as UTF-8.

    Raises:
        InvalidInput: they are not valid UTF-8.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(where, f"cannot read {path!r}: {error}", "UTF-8") from None


def write_text(path: str, text: str, where: str, mode: int = PUBLIC) -> None:
    """Replace a file atomically. Devices and pipes are written to in place.

    Args:
        path: the file.
        text: its new contents.
        where: the flag that specified it, for the error.
        mode: permissions of the new file.

    Raises:
        InvalidInput: the file cannot be written.
    """
    file = Path(path)
    try:
        if _is_special(file):
            file.write_text(text, encoding="utf-8")
        else:
            _replace(file.resolve(), text, mode)
    except OSError as error:
        raise InvalidInput(where, f"cannot write {path!r}: {error}", "a file in an existing directory") from None


def make_private_directory(path: str, where: str) -> None:
    """Create a directory that only this user can access; an existing one is left unchanged.

    Raises:
        InvalidInput: it cannot be created; `where` is the flag that specified it.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).mkdir(mode=PRIVATE_DIRECTORY, exist_ok=True)
    except OSError as error:
        raise InvalidInput(where, f"cannot create {path!r}: {error}", "a directory that this user can create") from None


def _is_special(path: Path) -> bool:
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:  # other errors, such as a symlink loop, are reported
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
