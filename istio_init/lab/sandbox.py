"""A pod's first process: gives the pod its view of files and its network, and then holds its namespaces.

It is started in a network and a mount namespace of its own, inside those of the lab, and is a program of its own:
`python -m istio_init.lab.sandbox DIRECTORY LINK ADDRESS...`. It says a word when all is there, and stays until it is killed.
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
PATIENCE = 10.0  # seconds for one mount


def main(arguments: Sequence[str]) -> None:
    """Make the pod's surroundings."""
    directory, link, *addresses = arguments
    mount_files(Path(directory))
    join(link, addresses)
    sys.stdout.buffer.write(READY)
    sys.stdout.close()
    while True:
        signal.pause()


def mount_files(directory: Path) -> None:
    """Lay the pod's own files over the machine's, for this mount namespace alone.

    Envoys of one version and base id share memory by name, so each pod has a /dev/shm, as Kubernetes gives it.
    """
    for place, name in (("/etc", "etc"), ("/usr/local/bin", "bin")):
        layers = f"lowerdir={place},upperdir={directory / name},workdir={directory / name}.work"
        _run("mount", "-t", "overlay", "overlay", "-o", layers, place)
    _run("mount", "-t", "tmpfs", "shm", "/dev/shm")  # noqa: S108 - not for files of ours


def _run(*argv: str) -> None:
    (result,) = run_all([Command(argv)], PATIENCE, lambda _: None)
    if result.status != 0:
        sys.exit(f"`{' '.join(argv)}`: {result.stderr}")


if __name__ == "__main__":
    main(sys.argv[1:])
