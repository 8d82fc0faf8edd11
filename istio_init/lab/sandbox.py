"""A pod's first process: sets up the pod's files and network, and then keeps its namespaces alive.

A separate program, started in its own network and mount namespaces inside those of the lab:
`python -m istio_init.lab.sandbox DIRECTORY LINK ADDRESS...`. It reports when it is ready, and runs until it is killed.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from istio_init.core.runner import Command, run_all
from istio_init.lab.network import join

if TYPE_CHECKING:
    from collections.abc import Sequence

READY = b"ready"
MOUNT_TIMEOUT = 10.0  # seconds


def main(arguments: Sequence[str]) -> None:
    """Set up the pod."""
    directory, link, *addresses = arguments
    mount_files(Path(directory))
    join(link, addresses)
    sys.stdout.buffer.write(READY)
    sys.stdout.close()
    while True:
        signal.pause()


def mount_files(directory: Path) -> None:
    """Overlay the pod's files on the machine's, in this mount namespace only.

    Envoys with the same version and base ID share memory by name, so each pod gets its own /dev/shm, as in Kubernetes.
    """
    for target, name in (("/etc", "etc"), ("/usr/local/bin", "bin")):
        layers = f"lowerdir={target},upperdir={directory / name},workdir={directory / name}.work"
        _run("mount", "-t", "overlay", "overlay", "-o", layers, target)
    _run("mount", "-t", "tmpfs", "shm", "/dev/shm")  # noqa: S108 - a mount point


def _run(*argv: str) -> None:
    (result,) = run_all([Command(argv)], MOUNT_TIMEOUT, lambda _: None)
    if result.status != 0:
        sys.exit(f"`{' '.join(argv)}`: {result.stderr}")


if __name__ == "__main__":
    main(sys.argv[1:])
