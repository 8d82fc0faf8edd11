"""Parses a command line from a table of options, without click, which is slow to import and would delay each pod start.

It accepts what click accepts: words, `--flag value`, `--flag=value`, `-f value`, `-fvalue`, combined flags without values
(`-nv`), and `--`, after which no word is a flag; also `-f=value`, as in Go. If a flag is repeated, the last one counts.
"""

from __future__ import annotations

from istio_init.core.errors import InvalidInput
from istio_init.core.light import TYPE_CHECKING, Any
from istio_init.core.option import TRUE, Kind, Option

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

STRICT = (Kind.VALUE, Kind.REPEATED, Kind.SWITCH)  # their values never begin as a flag does
END_OF_FLAGS = "--"
NO_VALUE = "no value was given; an empty one is written ''"
FORGOTTEN = "stands where its value should be; an empty value is written ''"


def read(options: Sequence[Option], words: Iterable[str], command: str) -> dict[str, Any]:
    """Parse the words of a command line.

    Args:
        options: the command's.
        words: those after its name.
        command: its name, for messages.

    Returns:
        what was given, by `Option.name`: a text, True for a flag without a value, a list for what may be repeated.

    Raises:
        InvalidInput: a flag is unknown, lacks its value or takes none, or a word is unexpected.
    """
    by_flag = _by_flag(options)
    given: dict[str, Any] = {}
    arguments: list[str] = []
    left = spell_out(options, words)[::-1]
    while left:
        word = left.pop()
        if word == END_OF_FLAGS:
            arguments += left[::-1]
            break
        if not is_flag(word):
            arguments.append(word)
            continue
        flag, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        if flag not in by_flag:
            raise InvalidInput(flag, "there is no such flag", _help(command))
        option = by_flag[flag]
        if option.kind is Kind.FLAG:
            if equals:
                raise InvalidInput(flag, "it takes no value", _help(command))
            given[option.name] = True
            continue
        if not equals:
            value = _next(left, option, flag)
        given[option.name] = [*given.get(option.name, ()), value] if option.kind is Kind.REPEATED else value
    for option in options:
        if option.name in given:
            refuse_flag(option, given[option.name])
    return given | _place(options, arguments, command)


def _next(left: list[str], option: Option, flag: str) -> str:
    if not left:
        raise InvalidInput(flag, NO_VALUE, f"{option.metavar}: {option.help}")
    return left.pop()


def spell_out(options: Sequence[Option], words: Iterable[str]) -> list[str]:
    """Normalize words to forms that every parser accepts: `-vn=false -p=1` becomes `-v -n false -p 1`."""
    by_flag = _by_flag(options)
    spelled: list[str] = []
    left = list(words)
    for number, word in enumerate(left):
        if word == END_OF_FLAGS:
            return spelled + left[number:]
        spelled += _spell(word, by_flag)
    return spelled


def _spell(word: str, by_flag: Mapping[str, Option]) -> list[str]:
    if word.startswith("--"):
        is_switch = word in by_flag and by_flag[word].kind is Kind.SWITCH
        return [f"{word}={TRUE}" if is_switch else word]
    flag, rest = word[:2], word[2:]
    if flag not in by_flag:
        return [word]
    kind = by_flag[flag].kind
    if not rest:
        return [flag, TRUE] if kind is Kind.SWITCH else [flag]
    return [flag, *_spell(f"-{rest}", by_flag)] if kind is Kind.FLAG else [flag, rest.removeprefix("=")]


def is_flag(word: str) -> bool:
    """Return whether a word is parsed as a flag; `-` alone is not: it is standard input."""
    return word.startswith("-") and word != "-"


def refuse_flag(option: Option, value: str | list[str]) -> None:
    """Refuse a value that looks like a flag: `-b -d ""` lacks a value, it does not name a port `-d`.

    A negative number is left to the option's parser.

    Raises:
        InvalidInput: it does.
    """
    if option.kind not in STRICT:
        return
    for one in [value] if isinstance(value, str) else value:
        if is_flag(one) and not one[1].isdigit():
            raise InvalidInput(option.where, f"{one!r} {FORGOTTEN}", f"{option.metavar}: {option.help}")


def _by_flag(options: Sequence[Option]) -> dict[str, Option]:
    return {flag: option for option in options for flag in option.flags}


def _place(options: Sequence[Option], arguments: list[str], command: str) -> dict[str, Any]:
    """Assign each argument to its option, in order."""
    placed: dict[str, Any] = {}
    for option in options:
        if option.kind is Kind.ARGUMENTS:
            placed[option.name], arguments = arguments, []
        elif option.kind is Kind.ARGUMENT and arguments:
            placed[option.name], *arguments = arguments
    if arguments:
        raise InvalidInput(arguments[0], "no flag stands before this word", _help(command))
    return placed


def _help(command: str) -> str:
    return f"what `istio-init {command} --help` shows"
