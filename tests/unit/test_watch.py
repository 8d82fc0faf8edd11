"""A new certificate of the pod is noticed, in a directory as Kubernetes fills it and in a plain one."""

from __future__ import annotations

import os
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

import pytest

from istio_init.core.watch import FILES, digest, watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TIMEOUT = 10.0  # seconds for a notice to come
SILENCE = 0.2  # seconds in which none comes

Notices = SimpleQueue[None]


def fill(directory: Path, text: str) -> None:
    for name in FILES:
        (directory / name).write_text(f"{text} {name}", encoding="utf-8")


def publish(directory: Path, text: str) -> None:
    """Fill a directory as the kubelet does: a version beside the others, and one link that replaces the former one."""
    version = directory / f"..{text}"
    version.mkdir()
    fill(version, text)
    (directory / "..data_tmp").symlink_to(version.name)
    (directory / "..data_tmp").rename(directory / "..data")
    for name in FILES:
        if not (directory / name).is_symlink():
            (directory / name).symlink_to(f"..data/{name}")


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    publish(tmp_path, "first")
    return tmp_path


@pytest.fixture
def notices(secret: Path) -> Iterator[Notices]:
    found: Notices = SimpleQueue()
    with watch(str(secret), lambda: found.put(None)):
        yield found


def has_come(notices: Notices, seconds: float = TIMEOUT) -> bool:
    try:
        notices.get(timeout=seconds)
    except Empty:
        return False
    return True


def settle(notices: Notices) -> None:
    while has_come(notices, SILENCE):
        pass


# The fingerprint.


def test_the_fingerprint_is_that_of_the_contents(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for directory in (one, other):
        directory.mkdir()
        fill(directory, "same")
    assert digest(str(one)) == digest(str(other)) != ""
    os.utime(one / "key.pem", (0, 0))
    assert digest(str(one)) == digest(str(other))


@pytest.mark.parametrize("name", FILES)
def test_each_file_counts(name: str, secret: Path) -> None:
    before = digest(str(secret))
    (secret / name).write_text("another", encoding="utf-8")
    assert digest(str(secret)) not in ("", before)


def test_files_that_change_places_are_another_certificate(secret: Path) -> None:
    before = digest(str(secret))
    chain, key = secret / "cert-chain.pem", secret / "key.pem"
    chain_text = chain.read_text(encoding="utf-8")
    chain.write_text(key.read_text(encoding="utf-8"), encoding="utf-8")
    key.write_text(chain_text, encoding="utf-8")
    assert digest(str(secret)) not in ("", before)


@pytest.mark.parametrize("name", FILES)
def test_without_one_of_its_files_there_is_no_certificate(name: str, secret: Path) -> None:
    (secret / name).write_text("", encoding="utf-8")
    assert digest(str(secret)) == ""
    (secret / name).unlink()
    assert digest(str(secret)) == ""


def test_where_there_is_no_directory_there_is_no_certificate(tmp_path: Path) -> None:
    assert digest(str(tmp_path / "nowhere")) == ""


def test_other_files_do_not_count(secret: Path) -> None:
    before = digest(str(secret))
    (secret / "README").write_text("mine", encoding="utf-8")
    assert digest(str(secret)) == before


# The watch.


def test_a_swap_of_kubernetes_link_is_noticed_and_shows_a_whole_certificate(secret: Path, notices: Notices) -> None:
    before = digest(str(secret))
    publish(secret, "second")
    assert has_come(notices)
    assert digest(str(secret)) not in ("", before)


def test_the_rename_of_the_link_alone_is_noticed(secret: Path, notices: Notices) -> None:
    version = secret / "..second"
    version.mkdir()
    fill(version, "second")
    (secret / "..data_tmp").symlink_to(version.name)
    settle(notices)
    (secret / "..data_tmp").rename(secret / "..data")
    assert has_come(notices)


CHANGES: dict[str, Callable[[Path], object]] = {
    "written": lambda directory: (directory / "plain").write_text("new", encoding="utf-8"),
    "added": lambda directory: (directory / "added").touch(),
    "removed": lambda directory: (directory / "plain").unlink(),
    "moved in": lambda directory: (directory.parent / "outside").rename(directory / "plain"),
    "moved out": lambda directory: (directory / "plain").rename(directory.parent / "elsewhere"),
    "permitted": lambda directory: (directory / "plain").chmod(0o600),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_each_change_of_a_plain_directory_is_noticed(change: Callable[[Path], object], tmp_path: Path) -> None:
    directory = tmp_path / "certs"
    directory.mkdir()
    (directory / "plain").write_text("old", encoding="utf-8")
    (tmp_path / "outside").write_text("new", encoding="utf-8")
    found: Notices = SimpleQueue()
    with watch(str(directory), lambda: found.put(None)):
        change(directory)
        assert has_come(found)


def test_a_certificate_that_comes_later_is_noticed(tmp_path: Path) -> None:
    found: Notices = SimpleQueue()
    with watch(str(tmp_path), lambda: found.put(None)):
        assert digest(str(tmp_path)) == ""
        publish(tmp_path, "first")
        assert has_come(found)
        assert digest(str(tmp_path)) != ""


def test_reading_is_no_change(tmp_path: Path) -> None:
    fill(tmp_path, "first")
    found: Notices = SimpleQueue()
    with watch(str(tmp_path), lambda: found.put(None)):
        for _ in range(3):
            assert digest(str(tmp_path)) != ""
        assert sorted(file.name for file in tmp_path.iterdir()) == sorted(FILES)
        assert not has_come(found, SILENCE)
        (tmp_path / "key.pem").write_text("second", encoding="utf-8")
        assert has_come(found), "the watch has gone on"


def test_after_the_end_nothing_is_noticed(secret: Path) -> None:
    found: Notices = SimpleQueue()
    with watch(str(secret), lambda: found.put(None)):
        pass
    publish(secret, "second")
    assert not has_come(found, SILENCE)


def test_a_directory_that_is_not_there_cannot_be_watched(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), watch(str(tmp_path / "nowhere"), lambda: None):
        pass
