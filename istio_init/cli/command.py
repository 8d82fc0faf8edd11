"""What a command is, and how each way to end it becomes an exit code."""

from __future__ import annotations

import sys

from istio_init.core.errors import IstioInitError, shorten
from istio_init.core.light import TYPE_CHECKING, Any, NamedTuple
from istio_init.core.log import Level, Log
from istio_init.core.option import read_values

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from istio_init.core.errors import InvalidInput
    from istio_init.core.option import Option

    Given = Mapping[str, Any]  # what was read from a command line: see `istio_init.core.argv`

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
REPORTED = (IstioInitError, OSError, MemoryError, KeyboardInterrupt)  # errors that `report` knows
LOG_NAMES = frozenset({"log_format", "verbose", "quiet"})


def read_log(command: Subcommand, given: Given) -> Log:
    """Make the log that a command line asks for.

    Raises:
        InvalidInput: a value is not allowed.
    """
    return Log.of(read_values([option for option in command.options if option.name in LOG_NAMES], given))


class Subcommand(NamedTuple):
    r"""One command.

    Attributes:
        name: on the command line.
        help: what it does, in words; the first line is the summary.
        epilog: what its help ends with: paragraphs that begin with a line of \b keep their line breaks.
        options: the table of what it takes.
        run: does it, with the given options and the log; returns the exit code, if it is not 0.
        log: creates its log.
        explain: explains a command line that cannot be parsed, if the command knows better than click.
    """

    name: str
    help: str
    epilog: str
    options: tuple[Option, ...]
    run: Callable[[Given, Log], int | None]
    log: Callable[[Subcommand, Given], Log] = read_log
    explain: Callable[[Sequence[str]], InvalidInput | None] = lambda _: None


def execute(command: Subcommand, given: Given, log: Log) -> int:
    """Run a command, log what goes wrong, and return the exit code.

    Args:
        command: which one.
        given: what its command line says.
        log: for errors that come up before it is known what the command line says of the log.
    """
    try:
        log = command.log(command, given)
        status = command.run(given, log) or 0
        flush()
    except BrokenPipeError:
        return 0  # who read the output has seen enough (`istio-init -n | head`)
    except REPORTED as error:
        return report(error, log)
    return status


def report(error: BaseException, log: Log) -> int:
    """Log an error, and return its exit code."""
    if isinstance(error, IstioInitError):
        log.write(Level.ERROR, "; ".join((str(error), *getattr(error, "__notes__", ()))))
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        log.write(Level.ERROR, "interrupted")
        return EXIT_INTERRUPTED
    refused = "there is not enough memory" if isinstance(error, MemoryError) else shorten(str(error))
    log.write(Level.ERROR, f"the system refused: {refused}")
    return IstioInitError.exit_code


def flush() -> None:
    """Write what is printed so far."""
    if sys.stdout:  # None where it was closed from the start
        sys.stdout.flush()


def print_text(text: str) -> None:
    """Print a result as it is.

    Raises:
        IstioInitError: see `require_output`.
    """
    require_output()
    sys.stdout.write(text)


def require_output() -> None:
    """Refuse a result that nobody could see.

    Raises:
        IstioInitError: standard output was closed from the start.
    """
    if sys.stdout is None:
        raise IstioInitError("standard output is closed, so the result cannot be printed; open it, such as with >FILE")
