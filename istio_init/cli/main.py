"""The command line: which command is meant, and the quick way to run it.

The commands that pods wait for are read by their tables alone. Everything else goes through click: their help, the messages
about command lines that cannot be read, completion in shells, and the other commands.
"""

from __future__ import annotations

import os

from istio_init.cli.command import execute
from istio_init.core.argv import read
from istio_init.core.errors import InvalidInput
from istio_init.core.light import TYPE_CHECKING
from istio_init.core.log import Log

if TYPE_CHECKING:
    from collections.abc import Sequence

    from istio_init.cli.command import Subcommand

DEFAULT = "apply"
LINKS = frozenset({"istio-iptables"})  # names of links to this program, each of which is a command
COMPLETION = "_ISTIO_INIT_COMPLETE"  # the variable by which shells ask click for completion
GROUP_FLAGS = frozenset({"-h", "--help", "--version"})


def run(words: Sequence[str]) -> int:
    """Run one command line, and return the exit code."""
    if COMPLETION in os.environ:
        from istio_init.cli.completion import complete

        return complete(os.environ[COMPLETION], Log())
    if _is_only_curious(words):
        from istio_init.cli.group import show_help

        return show_help()
    name, *rest = words = with_command(words)
    # Until the options are read, only the words themselves say how to log.
    line = " ".join(words).replace("=", " ")
    log = Log(json="--log-format json" in line or "--log_as_json" in line)
    command = _quick(name)
    if command is not None:
        try:
            given = read(command.options, rest, name)
        except InvalidInput:
            pass  # click's messages are better, and know what was meant
        else:
            return execute(command, given, log)
    from istio_init.cli.group import run_group

    return run_group(words, log)


def as_called(argv: Sequence[str]) -> list[str]:
    """Return the words of a command line; a program that is called by a link's name is that command.

    The images have a link `istio-iptables`, for init containers whose command that is.
    """
    name = os.path.basename(argv[0])
    return [name, *argv[1:]] if name in LINKS else list(argv[1:])


def with_command(words: Sequence[str]) -> list[str]:
    """Put `apply` in front, unless a command or a flag of the group stands there.

    It may be left out, because the old image's entrypoint took the flags of `apply` bare.
    """
    if not words or (words[0].startswith("-") and words[0] not in GROUP_FLAGS):
        return [DEFAULT, *words]
    return list(words)


def _is_only_curious(words: Sequence[str]) -> bool:
    """Return whether someone types the bare name at a machine's own terminal, to see what it does.

    A pod may have a terminal, too (`tty: true`), and there it means `apply`; so it does where a host is meant.
    """
    if words or not (os.isatty(0) or os.isatty(2)):
        return False
    from istio_init.rules.commands import is_host_meant
    from istio_init.rules.kernel.host import is_machine

    return is_machine() and not is_host_meant({}, os.environ)


def _quick(name: str) -> Subcommand | None:
    """Return a command that pods wait for. Importing by name would first import what imports by name."""
    if name == "apply":
        from istio_init.cli.apply import COMMAND
    elif name == "istio-iptables":
        from istio_init.cli.istio_iptables import COMMAND
    elif name == "clean":
        from istio_init.cli.clean import COMMAND
    else:
        return None
    return COMMAND
