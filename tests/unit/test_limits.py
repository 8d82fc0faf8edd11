"""JSON and YAML whose text is short, but whose value would fill memory or overflow the stack."""

from __future__ import annotations

import signal
import subprocess
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import yaml
from ruamel.yaml import YAML

from istio_init.cli import main
from istio_init.core import limits
from istio_init.core.errors import InvalidInput
from istio_init.core.limits import MAX_DEPTH, check_aliases, check_depth, read_json
from istio_init.kubernetes.inject.text import rewrite
from istio_init.kubernetes.manifest import read_yaml
from istio_init.sidecar.bootstrap.settings import read_metadata
from tests.unit.program import command

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

PARSERS: dict[str, Callable[[str], Iterable[Any]]] = {
    "yaml": yaml.parse,
    "ruamel": lambda text: YAML(typ="safe", pure=True).parse(text),
}
each_parser = pytest.mark.parametrize("parse", PARSERS.values(), ids=list(PARSERS))

DEEP = "it has more than 100 levels"
LARGE = "with its aliases written out, it has more than 16777216 characters"
LONG = "it has an integer of more than 100 digits"


def laughs(leaf: str, levels: int) -> str:
    """Write values that each contain the one before nine times."""
    lines = [f"a0: &a0 {leaf}"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, levels)]
    return "\n".join(lines)


BOMBS = {
    "brackets": ("[" * 100_000, DEEP),
    "brackets side by side": (f"[{'[],' * 1_000_000}[]]", "it has more than 1000000 values"),
    "JSON": ("[" * 101 + "]" * 101, DEEP),
    "YAML": ("[x, " * 101 + "]" * 101, DEEP),
    "dashes": ("- " * 400 + "x", DEEP),
    "keys": ("".join(f"{' ' * level}k:\n" for level in range(400)), DEEP),
    "nesting by aliases": ("\n".join(["- &a0 x", *(f"- &a{n} [*a{n - 1}]" for n in range(1, 200))]), DEEP),
    "laughs": (laughs("x", 30), LARGE),
    "laughs about a long text": (laughs("x" * 1_000_000, 3), LARGE),
    "an alias in itself": ("a: &a [b, *a]", "the alias *a is in the value that it stands for"),
    "digits": ("a: " + "9" * 5000, LONG),
    "digits in JSON": ('{"a": ' + "9" * 5000 + "}", LONG),
    "hexadecimal digits": ("a: 0x" + "f" * 5000, LONG),
    "minutes": ("%YAML 1.1\n---\na: " + ":".join(["59"] * 300_000), LONG),
}
each_bomb = pytest.mark.parametrize(("text", "problem"), BOMBS.values(), ids=list(BOMBS))


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    signal.alarm(30)  # ends the whole process, as some of what is written in C cannot be interrupted
    yield
    signal.alarm(0)


def nested(levels: int) -> Any:
    value: Any = "x"
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value


def test_depth_is_bounded() -> None:
    check_depth(nested(MAX_DEPTH))
    with pytest.raises(ValueError, match=DEEP):
        check_depth(nested(MAX_DEPTH + 1))


def test_json_is_read_with_its_hooks() -> None:
    assert read_json(b'{"a": [1, -2.5e3, null]}') == {"a": [1, -2500.0, None]}
    assert read_json('{"a": 1, "a": 2}', object_pairs_hook=list) == [("a", 1), ("a", 2)]
    assert read_json("[NaN]", parse_constant=str) == ["NaN"]


@each_parser
def test_aliases_that_stand_for_little_are_accepted(parse: Callable[[str], Iterable[Any]]) -> None:
    check_aliases(parse(laughs("x", 6)))
    check_aliases(parse("a: &a {b: c}\nd: {<<: *a}\n---\na: &a [1]\nb: [*a, *a]"))


@each_parser
@pytest.mark.parametrize("bomb", ["laughs", "laughs about a long text", "an alias in itself"])
def test_aliases_that_stand_for_much_are_refused(bomb: str, parse: Callable[[str], Iterable[Any]]) -> None:
    text, problem = BOMBS[bomb]
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the next line looks at the message
        check_aliases(parse(text))
    assert str(error.value) == problem


@each_bomb
def test_a_bomb_is_no_yaml(text: str, problem: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the next line looks at the message
        read_yaml(text)
    assert str(error.value).endswith(problem)


def test_the_number_of_values_in_yaml_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_VALUES", 100)
    for read in (read_yaml, lambda text: rewrite(text, "f", lambda document, _: (document, ()))):
        read("- a\n" * 99)
        with pytest.raises((ValueError, InvalidInput), match="it has more than 1000000 values"):
            read("- a\n" * 100)


def test_texts_in_yaml_may_have_any_number_of_commas() -> None:
    text = f"a: '{',' * 1_000_001}'"
    assert read_yaml(text) == [{"a": "," * 1_000_001}]


def test_deep_and_shared_values_within_the_limits_are_read() -> None:
    deepest = "[" * 99 + "]" * 99
    assert read_yaml(f"a: &a {deepest}\nb: *a")[0]["b"] == read_yaml(deepest)[0]


@each_bomb
@pytest.mark.parametrize(
    "words",
    [
        ("inject", "-f"),
        ("uninject", "-f"),
        ("bootstrap", "--manifest"),
        ("bootstrap", "--ip=10.1.1.1", "--bootstrap-override"),
        ("bootstrap", "--ip=10.1.1.1", "--customConfigFile"),
    ],
    ids=" ".join,
)
def test_every_command_refuses_a_bomb(
    words: tuple[str, ...], text: str, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bomb"
    file.write_text(text, encoding="utf-8")
    assert main.run((*words, str(file))) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert f"{problem} (allowed: " in line


@pytest.mark.parametrize("bomb", ["brackets", "JSON", "digits in JSON"])
def test_metadata_of_a_proxy_is_no_bomb(bomb: str) -> None:
    text, problem = BOMBS[bomb]
    with pytest.raises(InvalidInput) as error:
        read_metadata("sidecar", {"ISTIO_METAJSON_X": text})
    assert problem in str(error.value)
    assert len(str(error.value)) < 400


OUT_OF_MEMORY = "istio-init: error: the system refused: there is not enough memory\n"


@pytest.mark.parametrize("words", [("inject", "-f"), ("bootstrap", "--manifest")], ids=" ".join)
def test_too_little_memory_is_told_in_one_line(words: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "large.json"
    members = '{"":0},' * 490_000
    file.write_text(f"[{members}0]", encoding="utf-8")
    done = subprocess.run(
        ["/bin/sh", "-c", 'ulimit -v 80000; exec "$@"', "sh", *command(*words, str(file))],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", OUT_OF_MEMORY)


@pytest.mark.parametrize("words", [("apply", "-n"), ("bootstrap", "--ip=10.1.1.1")], ids=" ".join)
def test_too_little_memory_is_told_wherever_it_is_noticed(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise MemoryError

    monkeypatch.setattr("istio_init.cli.apply.read_settings", fail)
    monkeypatch.setattr("istio_init.cli.completion.offer", fail)
    monkeypatch.setattr("istio_init.cli.bootstrap.print_text", fail)
    assert main.run(words) == 1
    assert capsys.readouterr().err == OUT_OF_MEMORY
    monkeypatch.setenv("_ISTIO_INIT_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "istio-init ")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert main.run(()) == 1
    assert capsys.readouterr().err == OUT_OF_MEMORY
