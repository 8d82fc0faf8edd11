"""Rule text, byte for byte. `pytest tests/golden --update-goldens` writes the files anew; review the diff then."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest

from istio_init.render import render
from tests.cases import CASES, Case

FILES = Path(__file__).parent / "files"
BY_NAME = {case.name: case for case in CASES}
# Every case in the format that the kernel gets; the other formats for one case of each mode.
GOLDENS = [(case.name, "restore") for case in CASES]
GOLDENS += [(name, output_format) for name in ("pod", "tproxy-all") for output_format in ("commands", "json", "table")]


@pytest.mark.parametrize(("name", "output_format"), GOLDENS)
def test_rule_text_is_as_reviewed(name: str, output_format: str, request: pytest.FixtureRequest) -> None:
    text = render(BY_NAME[name].plan(), output_format)
    file = FILES / f"{name}.{output_format}"
    if request.config.getoption("--update-goldens"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    golden = file.read_text(encoding="utf-8")
    diff = difflib.unified_diff(golden.splitlines(), text.splitlines(), str(file), "rendered now", lineterm="")
    assert text == golden, "\n".join(diff)


def test_no_golden_file_is_left_over() -> None:
    assert {file.name for file in FILES.iterdir()} == {f"{name}.{output_format}" for name, output_format in GOLDENS}


def test_case_names_are_unique() -> None:
    assert len(BY_NAME) == len(CASES)


def test_rendering_is_deterministic() -> None:
    case: Case = BY_NAME["tproxy-all"]
    assert render(case.plan()) == render(case.plan())
