"""The start of the program: `istio-init`, and `python -m istio_init`.

A process that lives for less than a tenth of a second has no use for two things that cost it a fifth of its time: looking
for garbage, and taking the interpreter apart at the end. Only a whole program may leave them out, so they are left out here
and nowhere else.
"""

from __future__ import annotations

import gc
import os
import sys

from istio_init.core.light import signal


def main() -> None:
    """Run the command line of this process, and end the process with its exit code."""
    gc.disable()
    _fill_streams()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # with an inherited SIG_IGN, no program's exit status could be known
    from istio_init.cli.main import as_called, run

    os._exit(run(as_called(sys.argv)))


def _fill_streams() -> None:
    """Open standard streams that were closed from the start; else the next file that is opened, a lock, became one."""
    for stream in range(3):
        try:
            os.fstat(stream)
        except OSError:  # the lowest free descriptor is this one
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # noqa: FBT003 - the signature is os's


if __name__ == "__main__":
    main()
