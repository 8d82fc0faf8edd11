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
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # with an inherited SIG_IGN, no program's exit status could be known
    from istio_init.cli.main import as_called, run

    os._exit(run(as_called(sys.argv)))


if __name__ == "__main__":
    main()
