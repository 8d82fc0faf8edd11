"""Files that users name: read with a clear error, written whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import threading
from typing import TYPE_CHECKING

import pytest

from istio_init.core.errors import InvalidInput
from istio_init.core.files import make_private_directory, read_text, write_text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def strict_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(directory: Path) -> list[str]:
    return sorted(file.name for file in directory.iterdir())


def refuses_to_write(path: Path) -> str:
    with pytest.raises(InvalidInput, match="--output: cannot write") as error:
        write_text(str(path), "new", "--output")
    return str(error.value)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    file = tmp_path / "x"
    write_text(str(file), "grüße\n", "--output")
    assert read_text(str(file), "--input") == "grüße\n"
    assert file.read_bytes() == "grüße\n".encode()


@pytest.mark.parametrize("content", [None, b"\xff\xfe", "directory"])
def test_what_cannot_be_read_names_its_flag_and_its_path(content: bytes | str | None, tmp_path: Path) -> None:
    file = tmp_path / "x"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content == "directory":
        file.mkdir()
    with pytest.raises(InvalidInput) as error:
        read_text(str(file), "--input")
    assert str(error.value).startswith(f"--input: cannot read {str(file)!r}: ")
    assert error.value.exit_code == 2


@pytest.mark.usefixtures("strict_umask")
def test_a_written_file_is_readable_by_all_whatever_the_umask(tmp_path: Path) -> None:
    file = tmp_path / "x"
    write_text(str(file), "new", "--output")
    assert mode(file) == 0o644
    assert names(tmp_path) == ["x"]


def test_a_reader_keeps_the_whole_old_file(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_text("old and long", encoding="utf-8")
    with file.open(encoding="utf-8") as reader:
        write_text(str(file), "new", "--output")
        assert reader.read() == "old and long"
    assert file.read_text(encoding="utf-8") == "new"
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("before", ["old", None], ids=["there", "not there yet"])
def test_a_link_stays_and_its_target_is_written(before: str | None, tmp_path: Path) -> None:
    link, target = tmp_path / "link", tmp_path / "target"
    if before is not None:
        target.write_text(before, encoding="utf-8")
    link.symlink_to("target")
    write_text(str(link), "new", "--output")
    assert link.is_symlink()
    assert target.read_text(encoding="utf-8") == "new"
    assert names(tmp_path) == ["link", "target"]


def test_a_pipe_stays_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_text(encoding="utf-8")), daemon=True)
    reader.start()
    write_text(str(pipe), "new", "--output")
    reader.join(10)
    assert found == ["new"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert names(tmp_path) == ["pipe"]


def test_what_cannot_be_written_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    refuses_to_write(tmp_path / "nowhere" / "x")
    refuses_to_write(tmp_path)
    assert names(tmp_path) == []


def test_a_link_to_itself_cannot_be_written_and_stays(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("link")
    refuses_to_write(link)
    assert names(tmp_path) == ["link"]
    assert link.is_symlink()


def test_a_name_that_is_too_long_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / ("x" * 255)  # there is no room for the longer name of the temporary file
    file.write_text("old", encoding="utf-8")
    refuses_to_write(file)
    assert file.read_text(encoding="utf-8") == "old"


def test_a_disk_that_refuses_at_the_last_moment_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = tmp_path / "x"
    file.write_text("old", encoding="utf-8")
    monkeypatch.setattr(type(file), "replace", refuse)
    assert "No space left" in refuses_to_write(file)
    assert file.read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["x"]


def test_a_temporary_file_is_new_and_its_name_cannot_be_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[str, int]] = []
    really_open = os.open

    def note(path: Path, flags: int, *mode: int) -> int:
        opened.append((path.name, flags))
        return really_open(path, flags, *mode)

    monkeypatch.setattr(os, "open", note)
    for _ in range(2):
        write_text(str(tmp_path / "x"), "new", "--output")
    (first, flags), (second, _) = opened
    assert first != second
    assert flags & os.O_EXCL
    assert flags & os.O_NOFOLLOW


def test_a_link_in_the_place_of_the_temporary_file_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "secret"
    secret.write_text("theirs", encoding="utf-8")
    secret.chmod(0o600)
    monkeypatch.setattr(os, "urandom", bytes)  # now it can be guessed
    link = tmp_path / f".x.{bytes(8).hex()}"
    link.symlink_to(secret)
    assert "File exists" in refuses_to_write(tmp_path / "x")
    assert (secret.read_text(encoding="utf-8"), mode(secret)) == ("theirs", 0o600)
    assert link.is_symlink()


def test_text_that_cannot_be_encoded_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_text("old", encoding="utf-8")
    with pytest.raises(InvalidInput, match=r"--output: cannot write '.*x': 'utf-8' codec"):
        write_text(str(file), "\udcff", "--output")
    assert file.read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["x"]


def test_a_private_directory_is_for_its_user_alone_and_those_above_are_made(tmp_path: Path) -> None:
    directory = tmp_path / "a" / "b" / "c"
    make_private_directory(str(directory), "--configPath")
    assert mode(directory) == 0o700
    assert mode(directory.parent) == 0o777 & ~_umask()


def test_a_directory_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    directory = tmp_path / "a"
    directory.mkdir(mode=0o755)
    (directory / "x").write_text("mine", encoding="utf-8")
    make_private_directory(str(directory), "--configPath")
    assert mode(directory) == 0o755
    assert names(directory) == ["x"]


@pytest.mark.parametrize("below", ["file", "file/x", "file/x/y"])
def test_a_directory_that_cannot_be_made_names_its_flag(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(InvalidInput, match=r"^--configPath: cannot create '.*file"):
        make_private_directory(str(tmp_path / below), "--configPath")
    assert names(tmp_path) == ["file"]


def _umask() -> int:
    before = os.umask(0)
    os.umask(before)
    return before
