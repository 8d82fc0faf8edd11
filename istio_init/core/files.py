"""User-specified files: readable errors, atomic writes."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from istio_init.core.errors import InvalidInput
from istio_init.core.reading import read_file

PUBLIC = 0o644
PRIVATE = 0o600
PRIVATE_DIRECTORY = 0o700


def read_text(path: str, where: str) -> str:
    """Read a text file; its line breaks become newlines.

    Raises:
        InvalidInput: see `read_file`; or it is not UTF-8.
    """
    return decode(read_file(path, where), path, where).replace("\r\n", "\n").replace("\r", "\n")


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
    except (OSError, ValueError) as error:
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
    # A name that nobody can guess, and never a link: in a directory for all, such as /tmp, others could have put one there.
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(descriptor, mode)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
