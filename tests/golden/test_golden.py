"""Rule text, byte for byte. `pytest tests/golden --update-goldens` writes the files anew; review the diff then."""

from __future__ import annotations

import pytest

from istio_init.render import render
from tests.cases import CASES, Case
from tests.golden.files import assert_golden, names

BY_NAME = {case.name: case for case in CASES}
# Every case in the format that the kernel gets; the other formats for one case of each mode.
GOLDENS = [(case.name, "restore") for case in CASES]
GOLDENS += [(name, output_format) for name in ("pod", "tproxy-all") for output_format in ("commands", "json", "table")]


@pytest.mark.parametrize(("name", "output_format"), GOLDENS)
def test_rule_text_is_as_reviewed(name: str, output_format: str, request: pytest.FixtureRequest) -> None:
    assert_golden(f"rules/{name}.{output_format}", render(BY_NAME[name].plan(), output_format), request)


def test_no_golden_file_is_left_over() -> None:
    assert names("rules") == {f"rules/{name}.{output_format}" for name, output_format in GOLDENS}


def test_case_names_are_unique() -> None:
    assert len(BY_NAME) == len(CASES)


def test_rendering_is_deterministic() -> None:
    case: Case = BY_NAME["tproxy-all"]
    assert render(case.plan()) == render(case.plan())
