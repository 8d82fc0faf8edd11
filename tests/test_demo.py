"""The demonstration's picture, and what the demonstration says when something is not as expected."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

if TYPE_CHECKING:
    from types import ModuleType

SCRIPTS = Path(__file__).parent.parent / "scripts"
TEXT = "{http://www.w3.org/2000/svg}text"


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
def test_the_picture_has_each_leg_with_all_of_its_evidence(script: ModuleType) -> None:
    notes = [script.Note(number, f"leg <{number}> & more", f"rule {number}\nlong " + "word " * 60) for number in range(1, 7)]
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
def test_a_counter_that_does_not_grow_is_told(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    outcomes: list[bool] = []
    stage = script.Stage(None, None, outcomes)
    evidence = stage.check_grown(("grows", "stays"), {"grows": 1, "stays": 2}, {"grows": 3, "stays": 2})
    assert outcomes == [True, False]
    assert evidence.splitlines() == ["grows  1 → 3", "stays  2 → 2"]
    shown = capsys.readouterr().out
    assert "✓ grows" in shown
    assert "✗ stays" in shown
