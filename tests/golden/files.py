"""Golden files: texts that somebody reviewed."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

FILES = Path(__file__).parent / "files"


def assert_golden(name: str, text: str, request: pytest.FixtureRequest) -> None:
    """Compare with a golden file, and show a diff; with --update-goldens write the file anew instead."""
    file = FILES / name
    if request.config.getoption("--update-goldens"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    golden = file.read_text(encoding="utf-8")
    diff = difflib.unified_diff(golden.splitlines(), text.splitlines(), name, "rendered now", lineterm="")
    assert text == golden, "\n".join(diff)


def names(directory: str) -> set[str]:
    """List the golden files of one directory."""
    return {str(file.relative_to(FILES)) for file in (FILES / directory).iterdir()}
