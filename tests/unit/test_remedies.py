"""What a program that may not do something is told to be given."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest

from istio_init.rules.environment import CAP_NET_ADMIN, CAP_NET_RAW
from istio_init.rules.kernel import remedies

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


ADD_ADMIN = "give the container the capability NET_ADMIN (securityContext.capabilities.add)"
ADD_RAW = "give the container the capability NET_RAW (securityContext.capabilities.add)"
ADD_BOTH = "give the container the capabilities NET_ADMIN and NET_RAW (securityContext.capabilities.add)"
FOR_ADMIN = "; reading and changing rules needs NET_ADMIN"
FOR_RAW = "; legacy iptables needs NET_RAW to open its raw socket; iptables on nf_tables does not need it"
LATER = "; where the kernel has no nf_tables, legacy iptables needs NET_RAW as well"
OTHER_IMAGE = "run as root (runAsUser: 0) or use an image that is built with FILE_CAPS=1"
GAIN = "let user 1337 use the file capabilities of {} (allowPrivilegeEscalation: true, and no no-new-privileges)"
AS_ROOT = "run as root (runAsUser: 0), because no other user has capabilities in a container"

IPTABLES, LEGACY, NFT, ITSELF = ("iptables-nft-save", False), ("iptables-legacy-save", True), ("nft", False), ("", False)
CASES = {
    "all": (Process(has=ADMIN | RAW, uid=0), LEGACY, ""),
    "enough for nf_tables": (Process(has=ADMIN, uid=0), IPTABLES, ""),
    "root without": (Process(uid=0), IPTABLES, ADD_ADMIN + FOR_ADMIN),
    "root without any": (Process(bounds=set(), uid=0), IPTABLES, ADD_ADMIN + FOR_ADMIN + LATER),
    "root without any, for nft": (Process(bounds=set(), uid=0), NFT, ADD_ADMIN + FOR_ADMIN),
    "root without any, for legacy": (Process(bounds=set(), uid=0), LEGACY, ADD_BOTH + FOR_ADMIN + FOR_RAW),
    "root without the raw socket": (Process(has=ADMIN, uid=0), LEGACY, ADD_RAW + FOR_RAW),
    "a user whose container has none": (Process(bounds=RAW), NFT, f"{ADD_ADMIN}, and {OTHER_IMAGE}{FOR_ADMIN}"),
    "a user of a plain image": (Process(), NFT, OTHER_IMAGE + FOR_ADMIN),
    "a user who may not gain any": (Process(of_file=b"x", may_gain=False), NFT, GAIN.format("nft") + FOR_ADMIN),
    "a user of the right image": (Process(of_file=b"x"), NFT, ""),
    "a user, in this process": (Process(of_file=b"x"), ITSELF, AS_ROOT + FOR_ADMIN),
    "a user without any, in this process": (
        Process(bounds=set()),
        ("", True),
        f"{ADD_BOTH}, and {AS_ROOT}{FOR_ADMIN}{FOR_RAW}",
    ),
}


@pytest.mark.parametrize(("process", "what", "remedy"), CASES.values(), ids=list(CASES))
def test_all_that_is_missing_is_named_with_the_way_to_give_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, process: Process, what: tuple[str, bool], remedy: str
) -> None:
    program, needs_raw = what

    def has_capability(number: int, kind: str = "") -> bool:
        return number in (process.bounds if kind == remedies.BOUNDING else process.has)

    def getxattr(_path: str, name: str) -> bytes:
        if name != remedies.FILE_CAPABILITIES or not process.of_file:
            raise OSError
        return process.of_file

    file = tmp_path / (program or "none")
    file.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(remedies, "has_capability", has_capability)
    monkeypatch.setattr(remedies, "may_gain_privileges", lambda: process.may_gain)
    monkeypatch.setattr("os.geteuid", lambda: process.uid)
    monkeypatch.setattr("os.getxattr", getxattr)
    assert remedies.missing_capability(program, needs_raw=needs_raw) == remedy
