"""The two readers of command lines: by the table alone, as pods wait for it, and by click, for everything else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from istio_init.cli.command import Subcommand
from istio_init.cli.group import make_command
from istio_init.core.argv import read
from istio_init.core.errors import InvalidInput
from istio_init.core.option import Kind, Option, read_values, whole_number
from istio_init.rules.commands import APPLY, CLEAN, ISTIO_IPTABLES
from istio_init.sidecar.bootstrap.settings import OPTIONS as PROXY

if TYPE_CHECKING:
    from collections.abc import Sequence

TABLE = (
    Option("port", ("-p", "--port"), metavar="PORT", help="A port."),
    Option("list", ("-b", "--list"), metavar="LIST", help="A list.", is_list=True),
    Option("switch", ("-n", "--switch"), metavar="BOOL", help="A switch.", kind=Kind.SWITCH),
    Option("loud", ("-v", "--loud"), help="Loud.", kind=Kind.FLAG),
    Option("quiet", ("-q",), help="Quiet.", kind=Kind.FLAG),
    Option("files", ("-f", "--file"), metavar="FILE", help="Files.", kind=Kind.REPEATED),
    Option("line", ("--line",), metavar="FLAGS", help="A line.", kind=Kind.LINE),
    Option("role", metavar="ROLE", kind=Kind.ARGUMENT),
)
TABLES = {"table": TABLE, "apply": APPLY, "istio-iptables": ISTIO_IPTABLES, "clean": CLEAN, "proxy": PROXY}


def by_table(options: Sequence[Option], words: Sequence[str]) -> dict[str, Any] | None:
    try:
        return read(options, words, "table")
    except InvalidInput:
        return None


def by_click(options: Sequence[Option], words: Sequence[str]) -> dict[str, Any] | None:
    command = make_command(Subcommand("table", "", "", tuple(options), lambda _given, _log: None))
    try:
        with command.make_context("table", list(words)) as context:
            found = context.params
    except (click.UsageError, InvalidInput):
        return None
    return {name: list(v) if isinstance(v, tuple) else v for name, v in found.items() if v not in (None, (), False)}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", {}),
        ("-p 1", {"port": "1"}),
        ("-p1", {"port": "1"}),
        ("-p=1", {"port": "1"}),
        ("--port 1", {"port": "1"}),
        ("--port=1", {"port": "1"}),
        ("--port=a=b", {"port": "a=b"}),
        ("-p 1 --port 2", {"port": "2"}),
        ("-p -1", {"port": "-1"}),
        ("--list=", {"list": ""}),
        ("-b=", {"list": ""}),
        ("-n", {"switch": "true"}),
        ("--switch", {"switch": "true"}),
        ("--switch=false", {"switch": "false"}),
        ("-n=false", {"switch": "false"}),
        ("-nfalse", {"switch": "false"}),
        ("--switch -p 1", {"switch": "true", "port": "1"}),
        ("-n sidecar", {"switch": "true", "role": "sidecar"}),
        ("-v", {"loud": True}),
        ("-vq", {"loud": True, "quiet": True}),
        ("-vqp1", {"loud": True, "quiet": True, "port": "1"}),
        ("-vn=false", {"loud": True, "switch": "false"}),
        ("-vp=1", {"loud": True, "port": "1"}),
        ("-f a --file b -f=c", {"files": ["a", "b", "c"]}),
        ("-f -", {"files": ["-"]}),
        ("--line -u", {"line": "-u"}),
        ("--line=-u", {"line": "-u"}),
        ("sidecar", {"role": "sidecar"}),
        ("-p 1 sidecar -v", {"port": "1", "role": "sidecar", "loud": True}),
        ("-v -- -p", {"loud": True, "role": "-p"}),
        ("--", {}),
        ("-", {"role": "-"}),
    ],
)
def test_both_readers_take_every_form(words: str, expected: dict[str, Any]) -> None:
    assert by_table(TABLE, words.split()) == by_click(TABLE, words.split()) == expected


def test_an_empty_word_is_a_value() -> None:
    assert by_table(TABLE, ["-b", ""]) == by_click(TABLE, ["-b", ""]) == {"list": ""}


@pytest.mark.parametrize(
    ("words", "where", "problem"),
    [
        ("--frob", "--frob", "no such flag"),
        ("--frob=1", "--frob", "no such flag"),
        ("-z", "-z", "no such flag"),
        ("-vz", "-z", "no such flag"),
        ("--por 1", "--por", "no such flag"),
        ("-p", "-p", "no value was given"),
        ("--port", "--port", "no value was given"),
        ("--loud=true", "--loud", "takes no value"),
        ("-b -v", "-b/--list", "'-v' stands where its value should be"),
        ("-b --", "-b/--list", "'--' stands where its value should be"),
        ("--list=--port", "-b/--list", "'--port' stands where its value should be"),
        ("-f --loud", "-f/--file", "'--loud' stands where its value should be"),
        ("sidecar ingress", "ingress", "no flag stands before this word"),
        ("--switch false sidecar", "sidecar", "no flag stands before this word"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(words: str, where: str, problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem) as raised:
        read(TABLE, words.split(), "table")
    assert raised.value.where == where
    assert raised.value.allowed
    assert by_click(TABLE, words.split()) is None


def words_of(options: Sequence[Option]) -> st.SearchStrategy[list[str]]:
    flags = st.sampled_from([flag for option in options for flag in option.flags])
    text = st.sampled_from(["", "80", "-1", "*", "10.0.0.0/8", "true", "false", "-", "--", "a=b", "=", "sidecar", "ü", "-é"])
    return st.lists(
        st.one_of(
            flags,
            text,
            st.builds("{}={}".format, flags, text),
            st.builds("{}{}".format, flags, flags.map(lambda flag: flag.lstrip("-"))),
            st.builds("{}{}".format, flags, text),
            st.text("-=abcdnpqv1", max_size=6),
        ),
        max_size=7,
    )


@pytest.mark.parametrize("name", TABLES)
@given(data=st.data())
def test_both_readers_agree_on_any_command_line(name: str, data: st.DataObject) -> None:
    options = TABLES[name]
    words = data.draw(words_of(options))
    # Help is for people: the quick reader knows no such flag, and hands such a command line to click.
    found = by_table(options, words)
    if not {"-h", "--help"} & set(words):
        assert found == by_click(options, words)


def test_values_are_made_by_their_rows_with_defaults() -> None:
    table = (
        Option("port", ("-p",), parse=whole_number(1, 9), default="7"),
        Option("colour", ("--colour",), choices=("red", "blue"), default="red"),
        Option("other", ("--other",)),
        Option("loud", ("-v",), kind=Kind.FLAG),
        Option("files", ("-f",), kind=Kind.REPEATED),
    )
    nothing = {"port": 7, "colour": "red", "other": None, "loud": False, "files": ()}
    assert read_values(table, {}) == nothing
    given_ = {"port": "9", "colour": "blue", "other": "", "loud": True, "files": ["a"]}
    assert read_values(table, given_) == {**given_, "port": 9, "files": ("a",)}
    for name, text in {"port": ("0", "10", "x", "", "-1", "+1", "1 ", "٣", "1_0"), "colour": ("", "green", "RED")}.items():
        for one in text:
            with pytest.raises(InvalidInput, match=r"1\.\.9|red, blue") as raised:
                read_values(table, {name: one})
            assert raised.value.where == {"port": "-p", "colour": "--colour"}[name]
