"""The command line by click: help, messages about usage, and the commands that no pod waits for."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from istio_init import __version__
from istio_init.cli.command import REPORTED, Subcommand, execute, flush, report, require_output
from istio_init.core.argv import NO_VALUE, refuse_flag, spell_out
from istio_init.core.errors import InvalidInput, shorten
from istio_init.core.log import Level
from istio_init.core.option import Kind, Option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from istio_init.core.log import Log

COMMANDS = ("apply", "clean", "istio-iptables", "bootstrap", "proxy", "inject", "uninject", "lab")
PROGRAM = "istio-init"

EPILOG = """\b
`apply` is the default: `istio-init -u 1337 -b 9080` is `istio-init apply -u 1337 -b 9080`,
and `istio-init` alone applies the defaults, as the old image did; at a machine's own terminal it shows
this help. Flags stand behind the command. A machine's own network namespace, and a Kubernetes node's,
are only written to with --host.
`istio-init apply --help` lists those of apply. `istio-iptables` takes the flags of today's Istio.

\b
Exit codes:
  0  done, or already in place
  1  any other error
  2  bad input: a flag, a variable or an environment file, or a host without --host; nothing was touched
  3  not permitted: the capability NET_ADMIN (or, for legacy tables, NET_RAW) is missing
  4  the kernel or a tool cannot do what the plan needs
  5  another program holds the lock
  126  connections do not go where they should (istio-iptables --run-validation)
  129, 143  ended by SIGHUP or SIGTERM before anything was changed

\b
Examples:
  istio-init -p 15001 -u 1337 -m REDIRECT -i '*' -x "" -b 9080 -d ""
  istio-init --dry-run --format table -u 1337 -i '*' -b 9080
  istio-init clean
  istio-init inject -f deployment.yaml

\b
Completion in bash: eval "$(_ISTIO_INIT_COMPLETE=bash_source istio-init)"; also zsh_source and fish_source.
"""


class Commands(click.Group):
    """The commands, each imported only when it is wanted."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command: `istio_init.cli.NAME` has it as `COMMAND`, a dash written as an underscore."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"istio_init.cli.{cmd_name.replace('-', '_')}")
        group: click.Command | None = getattr(module, "GROUP", None)
        return group or make_command(module.COMMAND)


@click.group(
    cls=Commands,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
@click.version_option(__version__, prog_name=PROGRAM)
def group() -> None:
    """Divert a pod's connections into its Envoy sidecar, with iptables rules that this program owns."""


def run_group(words: Sequence[str], log: Log) -> int:
    """Run one command line, log what goes wrong, and return the exit code.

    Args:
        words: the command line.
        log: for messages about its usage.
    """
    try:
        status = _invoke(words, log)
        flush()
    except BrokenPipeError:
        return 0  # who asked for help has seen enough
    except click.ClickException as error:
        log.write(Level.ERROR, f"{shorten(error.format_message())} (istio-init --help shows what is allowed)")
        return error.exit_code
    except REPORTED as error:
        return report(error, log)
    return int(status or 0)


def _invoke(words: Sequence[str], log: Log) -> int | None:
    try:
        with group.make_context(PROGRAM, list(words), obj=log) as context:
            status: int | None = group.invoke(context)
    except click.exceptions.Exit as end:  # after help, or the version
        require_output()  # click says nothing where it cannot print
        return end.exit_code
    return status


def show_help() -> int:
    """Show on standard error what there is, and return the exit code of a command line that asks for nothing."""
    with group.make_context(PROGRAM, [], resilient_parsing=True) as context:
        click.echo(context.get_help(), err=True)
    return click.UsageError.exit_code


def make_command(command: Subcommand) -> click.Command:
    """Make a command of click by the table of its options."""
    return TableCommand(
        command,
        callback=partial(_run, command),
        params=[_parameter(option) for option in command.options if option.flags or option.kind in PLACED],
    )


def _run(command: Subcommand, /, **given: Any) -> int:
    log: Log = click.get_current_context().obj
    return execute(command, {name: value for name, value in given.items() if value is not None}, log)


class TableCommand(click.Command):
    """A command whose flags are written as Go has them, too, and which may know what is wrong with its command line."""

    def __init__(self, command: Subcommand, **settings: Any) -> None:
        super().__init__(command.name, help=command.help, epilog=command.epilog, **settings)
        self._command = command

    @property
    def options(self) -> tuple[Option, ...]:
        """The table of what it takes."""
        return self._command.options

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the words.

        Raises:
            InvalidInput: they cannot be read, and the command knows what to write instead.
        """
        try:
            return super().parse_args(ctx, spell_out(self._command.options, args))
        except click.UsageError as error:
            raise self._command.explain(args) or self._forgotten(error) or error from None

    def _forgotten(self, error: click.UsageError) -> InvalidInput | None:
        """Put a forgotten value as any other bad value is put."""
        for option in self._command.options:
            if isinstance(error, click.BadOptionUsage) and error.option_name in option.flags and option.metavar:
                allowed = f"{option.metavar}: {option.help}"
                return InvalidInput(error.option_name, NO_VALUE, allowed)
        return None


PLACED = (Kind.ARGUMENT, Kind.ARGUMENTS)


def _parameter(option: Option) -> click.Parameter:
    if option.kind in PLACED:
        is_last = option.kind is Kind.ARGUMENTS
        return click.Argument(
            [option.name], nargs=-1 if is_last else 1, required=False, metavar=option.metavar, type=Text(option)
        )
    variables = f" [{', '.join(option.variables)}]" if option.variables else ""
    metavar = f"[{'|'.join(option.choices)}]" if option.choices else option.metavar
    text = f"{option.help}{variables}"
    if option.kind is Kind.FLAG:
        return click.Option([*option.flags, option.name], is_flag=True, default=None, help=text)
    return click.Option(
        [*option.flags, option.name],
        type=Text(option),
        metavar=metavar,
        help=text,
        multiple=option.kind is Kind.REPEATED,
    )


class Text(click.ParamType):  # type: ignore[type-arg] # generic since click 8.4 only
    """The text of a value, which the option's own parser reads later."""

    name = "text"

    def __init__(self, option: Option) -> None:
        self._option = option

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Refuse what begins as a flag does."""
        del param, ctx
        refuse_flag(self._option, value)
        return value
