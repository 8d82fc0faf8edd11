"""Rule text, byte for byte. `pytest tests/golden --update-goldens` writes the files anew; review the diff then."""

from __future__ import annotations

import pytest

from istio_init.rules.render import render
from tests.cases import CASES, Case
from tests.cases_current import CASES_CURRENT
from tests.golden.files import assert_golden, names
from tests.sweeps import sweep

ALL_CASES = (*CASES, *CASES_CURRENT)
BY_NAME = {case.name: case for case in ALL_CASES}
# Every case in the format that the kernel gets; the other formats for one case of each mode and layout.
GOLDENS = [(case.name, "restore") for case in ALL_CASES]
SHOWN = ("pod", "tproxy-all", "current-virtual-interfaces", "current-dual-stack-tproxy")
GOLDENS += [(name, output_format) for name in SHOWN for output_format in ("commands", "json", "table", "nft")]
# What nft alone has: sets, and chains for conditions that take more than one rule.
GOLDENS += [
    (name, "nft") for name in ("inbound-list", "outbound-exclusions", "current-owner-groups", "current-dual-stack-lists")
]
GOLDENS += [("jump-first", "table"), ("jump-first", "nft")]


@sweep(("name", "output_format"), GOLDENS)
def test_rule_text_is_as_reviewed(name: str, output_format: str, request: pytest.FixtureRequest) -> None:
    assert_golden(f"rules/{name}.{output_format}", render(BY_NAME[name].plan(), output_format), request)


def test_no_golden_file_is_left_over() -> None:
    assert names("rules") == {f"rules/{name}.{output_format}" for name, output_format in GOLDENS}


def test_case_names_are_unique() -> None:
    assert len(BY_NAME) == len(ALL_CASES)


@pytest.mark.parametrize("name", ["tproxy-all", "current-dual-stack-tproxy"])
def test_rendering_is_deterministic(name: str) -> None:
    case: Case = BY_NAME[name]
    assert render(case.plan()) == render(case.plan())
