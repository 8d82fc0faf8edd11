"""Writes the program that starts istio-init in an image.

The one that pip writes imports `site` and `re` first, and each pod would wait for both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# -I: nothing of the environment or the current directory changes what is imported. -S: without `site`, whose work for a
# virtual environment is to add this one directory.
TEXT = """#!{python} -IS
import sys

sys.path.append({packages!r})

from istio_init.__main__ import main

main()
"""


def write_start(program: Path, python: str, packages: str) -> None:
    """Write the program.

    Args:
        program: its file, which is replaced.
        python: the interpreter, by its path.
        packages: the directory in which the package is installed.
    """
    program.unlink(missing_ok=True)
    program.write_text(TEXT.format(python=python, packages=packages), encoding="ascii")
    program.chmod(0o755)
