"""The copies of the process that the backend libiptc works in, without a kernel."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, NoReturn

import pytest

from istio_init.core.errors import NotPermitted, Unsupported
from istio_init.rules.kernel import libiptc
from istio_init.rules.kernel.backend import Unread, Whole
from istio_init.rules.kernel.libiptc import LibiptcBackend
from istio_init.rules.model import Family, Match, MatchKind, Rule, Snapshot, Table, TableState, Target, TargetKind

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from istio_init.rules.kernel.backend import Readings

HELD: Snapshot = {
    Table.NAT: TableState(
        {"ISTIO_OUTPUT": (Rule((Match(MatchKind.UID_OWNER, 1337),), Target(TargetKind.RETURN)),)},
        users=(("ISTIO_OUTPUT", "THEIRS"),),
    )
}


def read(monkeypatch: pytest.MonkeyPatch, function: Callable[[Family], object]) -> Readings:
    monkeypatch.setattr(libiptc, "_read_family", function)
    return LibiptcBackend().read((Family.IPV6,))


def test_what_a_copy_reads_arrives_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(monkeypatch, lambda _: (HELD, set())) == {Family.IPV6: Whole(HELD)}


def test_each_family_is_read_in_a_copy_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libiptc, "_read_family", lambda _: (os.getpid(), set()))
    pids = LibiptcBackend().read(tuple(Family)).values()
    assert len({str(os.getpid()), *map(str, pids)}) == 1 + len(Family)


@pytest.mark.parametrize("error", [NotPermitted("no NET_ADMIN"), ValueError("a fault of ours")])
def test_what_a_copy_raises_is_raised_here(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Family) -> NoReturn:
        raise error

    with pytest.raises(type(error), match=str(error)):
        read(monkeypatch, fail)


@pytest.mark.parametrize(
    ("end", "status"),
    [(lambda: os._exit(3), "3"), (lambda: os.kill(os.getpid(), signal.SIGKILL), "-9")],
    ids=["exit", "signal"],
)
def test_a_copy_that_ends_without_a_word_is_an_error_with_what_libxtables_said(
    end: Callable[[], None], status: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def die(_: Family) -> None:
        os.write(2, b'target "X" already registered\n')
        end()

    reading = read(monkeypatch, die)[Family.IPV6]
    assert isinstance(reading, Unread)
    message = f'libiptc exited with status {status}: target "X" already registered; try --backend restore'
    assert (type(reading.why), str(reading.why)) == (Unsupported, message)
    assert capfd.readouterr() == ("", "")


def test_a_lock_that_is_a_fifo_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fifo = tmp_path / "lock"
    os.mkfifo(fifo)
    monkeypatch.setenv("XTABLES_LOCKFILE", str(fifo))
    signal.alarm(10)
    with LibiptcBackend().locked():
        signal.alarm(0)


def test_what_libxtables_says_of_a_copy_that_did_its_work_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def warn(_: Family) -> tuple[Snapshot, set[str]]:
        os.write(2, b"Warning: Extension owner revision 0 not supported, missing kernel module?\n")
        return HELD, set()

    assert read(monkeypatch, warn) == {Family.IPV6: Whole(HELD)}
    assert capfd.readouterr() == ("", "")
