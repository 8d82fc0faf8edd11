"""What shells offer while a command line is typed, from the tables of options. How to talk to a shell, click knows.

Where `--backend=n` is typed, bash replaces `n`, because `=` is a word of its own for it; zsh and fish replace all of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import click
from click.shell_completion import BashComplete, CompletionItem, FishComplete, ShellComplete, ZshComplete

from istio_init.cli.command import REPORTED, flush, report, require_output
from istio_init.cli.group import PROGRAM, TableCommand, group
from istio_init.cli.main import COMPLETION, DEFAULT, GROUP_FLAGS, with_command
from istio_init.core.argv import END_OF_FLAGS, spell_out
from istio_init.core.errors import InvalidInput
from istio_init.core.option import FALSE, TRUE, Kind, Option

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from istio_init.core.log import Log

HELP_FLAGS = ("-h", "--help")
PLACED = (Kind.ARGUMENT, Kind.ARGUMENTS)
VALUE_FOLLOWS = (Kind.VALUE, Kind.LINE, Kind.REPEATED)  # as the next word


class Offer(NamedTuple):
    """What a shell is offered.

    Attributes:
        values: that may stand where the user types.
        before: the part of the typed word that is not the value, such as `--backend=`.
        is_path: whether the shell is to complete a path, of which `values` has the beginning.
    """

    values: tuple[str, ...] = ()
    before: str = ""
    is_path: bool = False


def complete(instruction: str, log: Log) -> int:
    """Print a shell's completion script, or what it may offer; nothing else is done while the variable is set.

    Args:
        instruction: the variable's value, such as `bash_source`.
        log: for the error that it is none.
    """
    try:
        require_output()
        click.echo(_answer(instruction))
        flush()
    except BrokenPipeError:
        return 0  # the shell has seen enough
    except REPORTED as error:
        return report(error, log)
    return 0


def _answer(instruction: str) -> str:
    """Return what a shell asks for.

    Raises:
        InvalidInput: it asks for nothing known.
    """
    shell, _, what = instruction.partition("_")
    if shell not in SHELLS or what not in ("source", "complete"):
        allowed = ", ".join(f"{name}_{one}" for name in SHELLS for one in ("source", "complete"))
        raise InvalidInput(f"${COMPLETION}", f"{instruction!r} is not a request of a shell; nothing was changed", allowed)
    asked = SHELLS[shell](group, {}, PROGRAM, COMPLETION)
    return asked.source() if what == "source" else asked.complete()


def offer(words: Sequence[str], typed: str) -> Offer:
    """Return what may stand where the user types.

    Args:
        words: the complete words of the command line, without the program's name.
        typed: the beginning of the next one.
    """
    is_bare = not words and typed.startswith("-")  # then it is `apply`, or a flag of the group
    command, rest = _find([DEFAULT] if is_bare else with_command(words) if words else [])
    if isinstance(command, TableCommand):
        found = _in_command(command.options, rest, typed)
        more = sorted(GROUP_FLAGS.difference(HELP_FLAGS)) if is_bare else ()
        return found if found.before else found._replace(values=(*found.values, *_starting(typed, more)))
    if isinstance(command, click.Group):
        names = command.list_commands(click.Context(command))
        return Offer(_starting(typed, (*names, *HELP_FLAGS) if typed.startswith("-") else names))
    return Offer()


def _find(words: list[str]) -> tuple[click.Command | None, list[str]]:
    """Return the command that words name, and the words behind it; None for a command that does not exist."""
    command: click.Command | None = group
    for number, word in enumerate(words):
        if not isinstance(command, click.Group):
            return command, words[number:]
        if not word.startswith("-"):
            command = command.get_command(click.Context(command), word)
    return command, []


def _in_command(options: Sequence[Option], words: Sequence[str], typed: str) -> Offer:
    by_flag = {flag: option for option in options for flag in option.flags}
    waiting, are_flags_over = _read(options, words)
    if waiting is not None:
        return _values(waiting, typed)
    if typed.startswith("-") and not are_flags_over:
        flag, equals, value = typed.partition("=")
        if equals:
            return _values(by_flag[flag], value, f"{flag}=") if flag in by_flag else Offer()
        short = by_flag.get(typed[:2])
        if short is not None and typed != typed[:2] and short.kind is not Kind.FLAG:
            return _values(short, typed[2:], typed[:2])
        return Offer(_starting(typed, (*by_flag, *HELP_FLAGS)))
    arguments = [option for option in options if option.kind in PLACED]
    return _values(arguments[0], typed) if arguments else Offer()


def _read(options: Sequence[Option], words: Sequence[str]) -> tuple[Option | None, bool]:
    """Return the option whose value comes next, if there is one, and whether no more flags may follow."""
    by_flag = {flag: option for option in options for flag in option.flags}
    waiting = None
    for word in words:
        if waiting is not None:
            waiting = None
        elif word == END_OF_FLAGS:
            return None, True
        else:
            last = by_flag.get(spell_out(options, [word])[-1])
            waiting = last if last is not None and last.kind in VALUE_FOLLOWS else None
    return waiting, False


def _values(option: Option, typed: str, before: str = "") -> Offer:
    if option.is_path:
        return Offer((typed,), before, is_path=True)
    possible = (TRUE, FALSE) if option.kind is Kind.SWITCH else option.choices or option.offered
    return Offer(_starting(typed, possible), before)


def _starting(typed: str, words: Iterable[str]) -> tuple[str, ...]:
    return tuple(word for word in words if word.startswith(typed))


class _OfTables(ShellComplete):
    """Asks the tables for completions."""

    splits_at_equals = False  # whether what stands before = is not part of the word that is typed

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        """Return what may stand where the user types."""
        found = offer(args, incomplete)
        before = "" if self.splits_at_equals and found.before.endswith("=") else found.before
        return [CompletionItem(f"{before}{value}", type="file" if found.is_path else "plain") for value in found.values]


class _Bash(_OfTables, BashComplete):
    splits_at_equals = True

    def get_completion_args(self) -> tuple[list[str], str]:
        """Read the words, and join those that bash split at `=`."""
        words, typed = super().get_completion_args()
        joined: list[str] = []
        for word in (*words, typed):
            is_value = bool(word) and not word.startswith("-") and bool(joined) and joined[-1].endswith("=")
            if joined and joined[-1].startswith("-") and (word == "=" or is_value):
                joined[-1] += word
            else:
                joined.append(word)
        return joined[:-1], joined[-1]


class _Zsh(_OfTables, ZshComplete):
    # A path that is typed begins behind =.
    source_template = ZshComplete.source_template.replace("_path_files -f", "compset -P 1 '-*='; _path_files -f")


class _Fish(_OfTables, FishComplete):
    source_template = FishComplete.source_template.replace(
        "__fish_complete_path $metadata[2];",
        """set -l flag (string match -r -- '^-[^=]*=' $metadata[2]);
            for path in (__fish_complete_path (string replace -r -- '^-[^=]*=' '' $metadata[2]));
                echo "$flag$path";
            end;""",
    )


SHELLS: dict[str, type[_OfTables]] = {"bash": _Bash, "zsh": _Zsh, "fish": _Fish}
