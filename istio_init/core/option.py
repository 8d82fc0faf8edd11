"""The options of a command: one row for each flag, variable or argument.

A table of rows is the single definition of a command's options. The parser (`istio_init.core.argv`), click's commands with
their help and completion, the look-up of variables and the README's tables all use it.
"""

from __future__ import annotations

from istio_init.core.errors import InvalidInput
from istio_init.core.light import TYPE_CHECKING, Any, NamedTuple, StrEnum

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    Parse = Callable[[str, str], Any]

TRUE, FALSE = "true", "false"


class Kind(StrEnum):
    """How an option's value is written on a command line."""

    VALUE = "value"  # the next word, or behind =
    LINE = "line"  # as VALUE, but it may begin as a flag does: a command line in one word
    REPEATED = "repeated"  # as VALUE, any number of times
    SWITCH = "switch"  # alone it is true, and a value stands behind = only, as Go's flags have it
    FLAG = "flag"  # it has no value
    ARGUMENT = "argument"  # a word that no flag stands before
    ARGUMENTS = "arguments"  # all such words that are left


class Value(NamedTuple):
    """A value as text, and where it came from in the user's words (`-p`, `$ENVOY_PORT (/etc/x.env:3)`)."""

    text: str
    where: str


def verbatim(text: str, where: str) -> str:
    """Return a text unchanged."""
    del where
    return text


class Option(NamedTuple):
    """One option of a command.

    Attributes:
        name: by which programs know its value.
        flags: on the command line, the short one first; none for an argument, and for a variable without a flag.
        variables: environment variables; of several that are set, the last one wins.
        metavar: what the help shows for the value.
        help: what it does, its default included.
        kind: how its value stands on a command line.
        default: what counts where nothing is given, as a user would write it; None leaves it to the command.
        choices: the values that are possible, in the order of the help; empty for any that `parse` takes.
        offered: values that a shell offers, where `choices` are not all that `parse` takes.
        parse: makes a value of a text and of where it stood.
        is_list: whether an empty value means something ("none"). For the others an empty *variable* counts as not set, as
            `${VAR:-default}` did in Istio 1.0's script.
        is_path: whether the value is a path, which shells complete.
        since: the version of Istio that is the first to have it.
        old_variables: those of `variables` that only Istio 1.0 reads.
    """

    name: str
    flags: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    metavar: str = ""
    help: str = ""
    kind: Kind = Kind.VALUE
    default: str | None = None
    choices: tuple[str, ...] = ()
    offered: tuple[str, ...] = ()
    parse: Parse = verbatim
    is_list: bool = False
    is_path: bool = False
    since: tuple[int, int] = (1, 0)
    old_variables: tuple[str, ...] = ()

    @property
    def is_switch(self) -> bool:
        """Whether the flag alone means `true`."""
        return self.kind is Kind.SWITCH

    @property
    def where(self) -> str:
        """Its flags, or an argument's name, as messages show them."""
        return "/".join(self.flags) or self.name

    def read(self, text: str, where: str) -> Any:
        """Parse a text.

        Raises:
            InvalidInput: it is not allowed.
        """
        if self.choices and text not in self.choices:
            raise InvalidInput(where, f"{text!r} is not a choice", ", ".join(self.choices))
        return self.parse(text, where)


def read_values(options: Iterable[Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of options that have no variables, or their defaults; None where there is neither.

    Args:
        options: the rows.
        given: what `istio_init.core.argv` or click read, by `Option.name`.

    Raises:
        InvalidInput: the first value that is not allowed.
    """
    return {option.name: _value(option, given.get(option.name)) for option in options}


def read_chosen(options: Iterable[Option], chosen: Mapping[str, Value]) -> dict[str, Any]:
    """Return the values of options for which a flag, a variable or a file was chosen; for the others, defaults or None.

    Raises:
        InvalidInput: the first value that is not allowed.
    """
    return {
        option.name: option.read(*chosen[option.name]) if option.name in chosen else _value(option, None)
        for option in options
    }


def _value(option: Option, found: Any) -> Any:
    if option.kind is Kind.FLAG:
        return bool(found)
    if option.kind in (Kind.REPEATED, Kind.ARGUMENTS):
        return tuple(option.read(text, option.where) for text in found or ())
    text = option.default if found is None else found
    return None if text is None else option.read(text, option.where)


def whole_number(low: int, high: int) -> Parse:
    """Return a parser of decimal numbers between two inclusive limits."""

    def parse(text: str, where: str) -> int:
        # `int` alone would also take signs, underscores, spaces and the digits of other scripts.
        if not (text.isascii() and text.isdecimal() and len(text) <= len(str(high)) and low <= int(text) <= high):
            raise InvalidInput(where, f"{text!r} is not a number in this range", f"{low}..{high}")
        return int(text)

    return parse
