"""What shells offer: by the tables alone, and in real shells, where keys are pressed."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from istio_init.cli.completion import Offer, offer
from istio_init.cli.group import COMMANDS
from istio_init.rules.commands import APPLY, ISTIO_IPTABLES
from istio_init.rules.run_flags import BINARIES, LEVELS
from tests.privileges import give_up
from tests.unit.program import POD, call, command, refused
from tests.unit.terminal import PROMPT, Terminal

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from istio_init.core.option import Option

BACKENDS = ("auto", "restore", "libiptc", "nft")


def flags_of(options: Iterable[Option], *more: str) -> set[str]:
    return {flag for option in options for flag in option.flags} | set(more)


@pytest.mark.parametrize("line", ["clean --backend |", "istio-iptables --backend |", "--backend |", "-n -b 80 --backend |"])
def test_each_value_of_a_choice_is_offered_to_a_command_and_to_none(line: str) -> None:
    assert offered(line) == Offer(BACKENDS)


def offered(line: str) -> Offer:
    """Give what is offered where the bar stands, which ends the line."""
    *words, typed = line.removesuffix("|").split(" ")
    return offer(words, typed)


@pytest.mark.parametrize(
    ("line", "values", "before"),
    [
        ("cl|", ("clean",), ""),
        ("|", COMMANDS, ""),
        ("nope --|", (), ""),
        ("clean --backend=|", BACKENDS, "--backend="),
        ("--backend=l|", ("libiptc",), "--backend="),
        ("--no-such-flag=l|", (), ""),
        ("-m |", ("REDIRECT", "TPROXY"), ""),
        ("-m=|", ("REDIRECT", "TPROXY"), "-m="),
        ("-mT|", ("TPROXY",), "-m"),
        ("--jump |", ("first", "last"), ""),
        ("--redirect-dns=|", ("true", "false"), "--redirect-dns="),
        ("--redirect-dns=f|", ("false",), "--redirect-dns="),
        ("--redirect-dns |", (), ""),  # a value stands behind = only
        ("--redirect-dns --jum|", ("--jump",), ""),
        ("istio-iptables --force-iptables-binary |", BINARIES, ""),
        ("istio-iptables --log_output_level=|", tuple(LEVELS), "--log_output_level="),
        ("istio-iptables -n=|", ("true", "false"), "-n="),
        ("clean --family -|", (), ""),  # a value is missing
        ("clean -v --fam|", ("--family",), ""),
        ("clean --family ipv4 --back|", ("--backend",), ""),
        ("clean -- --back|", (), ""),
        ("lab |", ("down", "exec", "status", "up"), ""),
        ("lab -|", ("-h", "--help"), ""),
        ("lab up --backend=n|", ("nft",), "--backend="),
        ("--ver|", ("--verbose", "--version"), ""),
    ],
)
def test_commands_flags_and_values_are_offered_where_they_may_stand(line: str, values: tuple[str, ...], before: str) -> None:
    assert offered(line) == Offer(values, before)


def test_behind_the_bare_name_the_flags_of_apply_are_offered_and_those_of_the_group() -> None:
    assert set(offered("-|").values) == flags_of(APPLY, "-h", "--help", "--version")
    assert set(offered("apply -|").values) == flags_of(APPLY, "-h", "--help")
    assert set(offered("istio-iptables -|").values) == flags_of(ISTIO_IPTABLES, "-h", "--help")


@pytest.mark.parametrize(
    ("line", "value", "before"),
    [("inject -f dep|", "dep", ""), ("inject --filename=dep|", "dep", "--filename="), ("uninject -f |", "", "")],
)
def test_a_path_is_left_to_the_shell(line: str, value: str, before: str) -> None:
    assert offered(line) == Offer((value,), before, is_path=True)


@pytest.mark.parametrize("instruction", ["", "1", "bash", "tcsh_source", "bash_run"])
def test_nothing_is_applied_where_the_variable_of_completion_is_set(instruction: str) -> None:
    for words in ((), POD, ("clean",)):
        line = refused(call(*words, environment={"_ISTIO_INIT_COMPLETE": instruction}))
        assert f"$_ISTIO_INIT_COMPLETE: {instruction!r}" in line
        assert "bash_source" in line


# Real shells

# What a user types up to the tabulator key, and the words that the program is then given.
TYPED = {
    "istio-init cle": ["clean"],
    "istio-init clean --back": ["clean", "--backend"],
    "istio-init clean --backend=l": ["clean", "--backend=libiptc"],
    "istio-init clean --backend l": ["clean", "--backend", "libiptc"],
    "istio-init -n --layout=current --redirect-dns=f": ["-n", "--layout=current", "--redirect-dns=false"],
    "istio-init -m T": ["-m", "TPROXY"],
    "istio-init -m=T": ["-m=TPROXY"],
    "istio-init -mT": ["-mTPROXY"],
    "istio-init --jum": ["--jump"],
    "istio-init -i '*' -x \"\" --jump f": ["-i", "*", "-x", "", "--jump", "first"],
    "istio-init istio-iptables --force-iptables-binary=l": ["istio-iptables", "--force-iptables-binary=legacy"],
    "istio-init istio-iptables --log_output_level d": ["istio-iptables", "--log_output_level", "debug"],
    "istio-init inject -f dep": ["inject", "-f", "deployment.yaml"],
    "istio-init inject --filename=dep": ["inject", "--filename=deployment.yaml"],
}
SETUPS = {
    "bash": (("--norc", "--noprofile", "-i"), "bind 'set show-all-if-ambiguous on'; bind 'set page-completions off'"),
    "zsh": (("-f", "-i"), "autoload -Uz compinit; compinit -D -u"),
}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Make a directory with a file to complete, and with a program that completes, but else only notes its words."""
    (tmp_path / "deployment.yaml").touch()
    program = tmp_path / "istio-init"
    complete = f'[ -z "$_ISTIO_INIT_COMPLETE" ] || exec {shlex.join(command())} "$@"'
    program.write_text(f'#!/bin/sh\n{complete}\nprintf "%s\\n" "$@" >"{tmp_path}/words"\n', encoding="utf-8")
    program.chmod(0o755)
    return tmp_path


def surroundings(home: Path) -> dict[str, str]:
    path = f"{home}:{os.environ['PATH']}"
    return {"PATH": path, "HOME": str(home), "TERM": "vt100", "COLUMNS": "200", "LC_ALL": "C.UTF-8", "PS1": PROMPT}


def need(shell: str) -> str:
    found = shutil.which(shell)
    if found is None:
        give_up(f"{shell} is not installed")
    return found


@pytest.mark.parametrize("shell", SETUPS)
def test_at_a_terminal_the_tabulator_key_completes_what_the_program_is_given(shell: str, home: Path) -> None:
    flags, setup = SETUPS[shell]
    with Terminal([need(shell), *flags], surroundings(home), home) as terminal:
        terminal.press("")
        terminal.press(f'{setup}; eval "$(_ISTIO_INIT_COMPLETE={shell}_source istio-init)"; echo set"up"\n', "setup")
        for line, words in TYPED.items():
            terminal.press(f"{line}\t\n")
            terminal.press('echo do"ne"\n', "done")
            assert (home / "words").read_text(encoding="utf-8").splitlines() == words, line
        shown = terminal.press("istio-init clean --backend=\t\t", "nft")
        assert [value for value in BACKENDS if value not in shown] == []


def test_fish_completes_what_the_other_shells_do(home: Path) -> None:
    script = "_ISTIO_INIT_COMPLETE=fish_source istio-init | source; "
    script += "; ".join(f"complete -C {shlex.quote(line)}" for line in (*TYPED, "istio-init clean --backend="))
    argv = [need("fish"), "--no-config", "-c", script]
    done = subprocess.run(argv, check=True, capture_output=True, text=True, env=surroundings(home), cwd=home, timeout=120)
    assert done.stderr == ""
    wanted = [*(words[-1] for words in TYPED.values()), *sorted(f"--backend={value}" for value in BACKENDS)]
    assert done.stdout.splitlines() == wanted


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_is_given_a_script_that_it_can_read(shell: str) -> None:
    done = call(environment={"_ISTIO_INIT_COMPLETE": f"{shell}_source", "PATH": os.environ["PATH"]})
    assert done.returncode == 0
    argv = [need(shell), "-n", "/dev/stdin"]
    checked = subprocess.run(argv, check=False, input=done.stdout, capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
