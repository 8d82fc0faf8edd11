"""A pod with user namespaces (`hostUsers: false`): its network namespace belongs to a user namespace of its own."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.netns.namespaces import NSENTER

if TYPE_CHECKING:
    from collections.abc import Iterator

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000  # linux/sched.h
FIRST, COUNT = 200_000, 65_536  # the ids of the pod on the node, as the kubelet gives them
PROGRAM = (sys.executable, "-m", "istio_init")


class UserPod:
    """The pod, of which one process makes the namespaces last."""

    def __init__(self, process: int) -> None:
        self.process = process
        self.network = f"/proc/{process}/ns/net"

    def inside(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program as the pod's root."""
        enter = (NSENTER, "--target", str(self.process), "--user", "--net", "--setuid", "0", "--setgid", "0", "--")
        return _run((*enter, *words), check=check)

    def in_network(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program of the node in the pod's network namespace, but not in its user namespace."""
        return _run((NSENTER, f"--net={self.network}", "--", *words), check=check)

    def from_node(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the program on the node, for the pod."""
        return _run((*PROGRAM, "istio-iptables", *words, "--network-namespace", self.network), check=check)


def _run(words: tuple[str, ...], *, check: bool) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=60)
    assert not check or done.returncode == 0, f"{words}: {done.stderr}"
    return done


@contextmanager
def user_pod() -> Iterator[UserPod]:
    """Make the pod; its user namespace maps 65,536 ids to others of the node."""
    made, told = os.pipe(), os.pipe()
    process = os.fork()
    if process == 0:
        try:
            _be_the_pod(made[1], told[0])
        finally:
            os._exit(1)
    try:
        assert os.read(made[0], 1)
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{process}/{name}").write_text(f"0 {FIRST} {COUNT}\n")
        os.write(told[1], b"1")
        assert os.read(made[0], 1)
        pod = UserPod(process)
        pod.inside("ip", "link", "set", "lo", "up")
        yield pod
    finally:
        for file in (*made, *told):
            os.close(file)
        os.kill(process, 9)
        os.waitpid(process, 0)


def _be_the_pod(made: int, told: int) -> None:
    libc = ctypes.CDLL(None)
    if libc.unshare(CLONE_NEWUSER) == 0:
        os.write(made, b"1")
        os.read(told, 1)  # until ids are mapped
        os.setgid(0)
        os.setuid(0)
        if libc.unshare(CLONE_NEWNET) == 0:
            os.write(made, b"1")
            while True:
                libc.pause()
