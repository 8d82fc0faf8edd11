"""The demonstration's picture, and what the demonstration says when something is not as expected."""

from __future__ import annotations

import importlib.util
import sys
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

if TYPE_CHECKING:
    from types import ModuleType

SCRIPTS = Path(__file__).parent.parent / "scripts"
SVG = "{http://www.w3.org/2000/svg}"
TEXT = f"{SVG}text"
MONO = 0.61  # the width of a character of a monospaced font, in parts of its size
LONGEST = "cluster.outbound|9080||reviews.default.svc.cluster.local.upstream_rq_total  0 → 1"
EVIDENCE = (LONGEST, "-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN  11 → 12", "x-request-id one-request " * 9)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    spec = importlib.util.spec_from_file_location(request.param, SCRIPTS / f"{request.param}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, request.param, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("script", ["demo_picture"], indirect=True)
def test_the_picture_has_each_hop_with_all_of_its_evidence(script: ModuleType) -> None:
    notes = [script.Note(number, f"hop <{number}> & more", f"rule {number}\nlong " + "word " * 60) for number in range(1, 7)]
    drawn = ET.fromstring(script.draw((("caller", "10.0.0.1"), ("callee", "10.0.0.2")), notes))  # noqa: S314 - it is our own
    texts = [element.text or "" for element in drawn.iter(TEXT)]
    for note in notes:
        assert note.title in texts
        assert f"rule {note.number}" in texts
        assert texts.count(str(note.number)) == 2, "at the arrow and at the note"
    assert " ".join(texts).count("word") == 6 * 60
    height = float(drawn.attrib["viewBox"].split()[3])
    assert all(float(element.attrib["y"]) < height for element in drawn.iter(TEXT))


@pytest.mark.parametrize("script", ["demo"], indirect=True)
def test_a_counter_that_does_not_grow_is_reported(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    results: list[bool] = []
    demo = script.Demo(None, None, results)
    evidence = demo.check_grown(("grows", "stays"), {"grows": 1, "stays": 2}, {"grows": 3, "stays": 2})
    assert results == [True, False]
    assert evidence.splitlines() == ["grows  1 → 3", "stays  2 → 2"]
    shown = capsys.readouterr().out
    assert "✓ grows" in shown
    assert "✗ stays" in shown


@pytest.fixture
def drawn(script: ModuleType) -> ET.Element:
    notes = [script.Note(number, f"hop {number}", "\n".join(EVIDENCE)) for number in range(1, 7)]
    return ET.fromstring(script.draw((("caller", "10.0.0.1"), ("callee", "10.0.0.2")), notes))  # noqa: S314 - it is our own


def mono(drawn: ET.Element) -> list[ET.Element]:
    return [text for text in drawn.iter(TEXT) if "Mono" in text.attrib.get("font-family", "")]


@pytest.mark.parametrize("script", ["demo_picture"], indirect=True)
def test_evidence_stays_in_the_column_of_its_pod(drawn: ET.Element, script: ModuleType) -> None:
    lines = mono(drawn)
    edges = {column.pod + 42: column.pod + script.POD_WIDTH for column in (script.LEFT, script.RIGHT)}
    assert {int(line.attrib["x"]) for line in lines} == set(edges)
    for line in lines:
        width = len(line.text or "") * float(line.attrib["font-size"]) * MONO
        assert int(line.attrib["x"]) + width <= edges[int(line.attrib["x"])] + 10, line.text


@pytest.mark.parametrize("script", ["demo_picture"], indirect=True)
def test_lines_of_evidence_do_not_lie_on_each_other(drawn: ET.Element, script: ModuleType) -> None:
    for column in (script.LEFT, script.RIGHT):
        heights = [int(line.attrib["y"]) for line in mono(drawn) if int(line.attrib["x"]) == column.pod + 42]
        assert len(heights) > len(EVIDENCE)
        assert all(below - above >= script.LINE for above, below in pairwise(heights))


@pytest.mark.parametrize("script", ["demo_picture"], indirect=True)
def test_a_counter_and_its_change_stand_in_one_line(drawn: ET.Element) -> None:
    texts = [(line.text or "").replace("\N{NO-BREAK SPACE}", " ") for line in mono(drawn)]
    assert texts.count(LONGEST.replace("  ", " ")) == 6


@pytest.mark.parametrize("script", ["demo_picture"], indirect=True)
def test_each_pod_shows_app_rules_and_envoy_inside_of_it(drawn: ET.Element, script: ModuleType) -> None:
    for column in (script.LEFT, script.RIGHT):
        inside = [
            box.attrib["fill"]
            for box in drawn.iter(f"{SVG}rect")
            if column.pod < int(box.attrib.get("x", 0)) < column.pod + script.POD_WIDTH - int(box.attrib["width"])
        ]
        assert sorted(inside) == sorted((script.APP, script.RULES, script.ENVOY))
