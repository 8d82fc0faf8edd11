"""What a program that may not do something is told to be given."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest

from istio_init.backends import remedies
from istio_init.environment import CAP_NET_ADMIN, CAP_NET_RAW

if TYPE_CHECKING:
    from pathlib import Path

ADMIN, RAW = {CAP_NET_ADMIN}, {CAP_NET_RAW}


class Process(NamedTuple):
    """What a process has, and may get."""

    has: set[int] = set()  # noqa: RUF012 - nobody changes it
    bounds: set[int] = ADMIN | RAW
    uid: int = 1337
    of_file: bytes = b""
    may_gain: bool = True


CASES = {
    "all": (Process(has=ADMIN | RAW, uid=0), True, ""),
    "enough for nf_tables": (Process(has=ADMIN, uid=0), False, ""),
    "root without": (Process(uid=0), False, "give the container the capability NET_ADMIN"),
    "root without the raw socket": (Process(has=ADMIN, uid=0), True, "give the container the capability NET_RAW"),
    "a user whose container has none": (Process(bounds=RAW), False, "give the container the capability NET_ADMIN"),
    "a user of a plain image": (
        Process(),
        False,
        "run as root (runAsUser: 0), or use an image that is built with FILE_CAPS=1",
    ),
    "a user who may not gain any": (Process(of_file=b"x", may_gain=False), False, "allowPrivilegeEscalation: true"),
    "a user of the right image": (Process(of_file=b"x"), False, ""),
}


@pytest.mark.parametrize(("process", "needs_raw", "remedy"), CASES.values(), ids=list(CASES))
def test_a_missing_capability_is_named_with_the_way_to_give_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, process: Process, *, needs_raw: bool, remedy: str
) -> None:
    def has_capability(number: int, kind: str = "") -> bool:
        return number in (process.bounds if kind == remedies.BOUNDING else process.has)

    def getxattr(_path: str, name: str) -> bytes:
        if name != remedies.FILE_CAPABILITIES or not process.of_file:
            raise OSError
        return process.of_file

    program = tmp_path / "nft"
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(remedies, "has_capability", has_capability)
    monkeypatch.setattr(remedies, "may_gain_privileges", lambda: process.may_gain)
    monkeypatch.setattr("os.geteuid", lambda: process.uid)
    monkeypatch.setattr("os.getxattr", getxattr)
    told = remedies.missing_capability("nft", needs_raw=needs_raw)
    assert remedy in told
    assert bool(told) == bool(remedy)
