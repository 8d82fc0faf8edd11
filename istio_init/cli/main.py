"""The command line: the group of commands, and how each error ends the program."""

from __future__ import annotations

import sys
from importlib import import_module

import click

from istio_init import __version__
from istio_init.core.errors import InvalidInput, IstioInitError, shorten
from istio_init.core.log import Level, Log
from istio_init.rules.options import OPTIONS

COMMANDS = ("apply", "clean", "istio-iptables", "bootstrap", "proxy", "inject", "uninject", "lab")
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it

EPILOG = """\b
`apply` is the default: `istio-init -u 1337 -b 9080` is `istio-init apply -u 1337 -b 9080`,
and `istio-init` alone applies the defaults, as the old image did. Flags stand behind the command.
`istio-init apply --help` lists those of apply. `istio-iptables` takes the flags of today's Istio.

\b
Exit codes:
  0  done, or already in place
  1  anything that is not below
  2  bad input: a flag, a variable or an environment file; nothing was touched
  3  not permitted: the capability NET_ADMIN (or, for legacy tables, NET_RAW) is missing
  4  the kernel or a tool cannot do what the plan needs
  5  another program holds the lock
  126  connections do not go where they should (istio-iptables --run-validation)

\b
Examples:
  istio-init -p 15001 -u 1337 -m REDIRECT -i '*' -x "" -b 9080 -d ""
  istio-init --dry-run --format table -u 1337 -i '*' -b 9080
  istio-init clean
  istio-init inject -f deployment.yaml
"""


class Commands(click.Group):
    """The commands, each imported only when it is wanted; the first word may be left out.

    It may, because the old image's entrypoint took the flags of `apply` bare.

    click-default-group does the same by letting the group fail over each flag first, for which click looks for similar
    flags: 2 ms of each start. It also takes `-n --help` for the group's own help.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Name the commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Import a command: `istio_init.cli.NAME` has it under its name, a dash written as an underscore."""
        if cmd_name not in COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        command: click.Command = getattr(import_module(f"istio_init.cli.{name}"), name)
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `apply` in front, unless a command or a flag of the group stands there."""
        own_flags = {flag for parameter in self.get_params(ctx) for flag in parameter.opts}
        if not args or (args[0].startswith("-") and args[0] not in own_flags):
            args = ["apply", *args]
        return super().parse_args(ctx, args)


@click.group(
    cls=Commands,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
@click.version_option(__version__, prog_name="istio-init")
def cli() -> None:
    """Divert a pod's connections into its Envoy sidecar, with iptables rules that this program owns."""


def run(arguments: list[str]) -> int:
    """Run one command line, log what goes wrong, and give the exit code."""
    context = None
    try:
        with cli.make_context("istio-init", list(arguments)) as context:
            cli.invoke(context)
        if sys.stdout:  # None where it was closed from the start
            sys.stdout.flush()
    except click.exceptions.Exit as end:
        return end.exit_code
    except BrokenPipeError:
        return 0  # who read the output has seen enough (`istio-init -n | head`)
    except (click.ClickException, IstioInitError, OSError, KeyboardInterrupt) as error:
        # Before the options are read, only the words themselves say how to log.
        words = " ".join(arguments).replace("=", " ")
        log = (context and context.obj) or Log(json="--log-format json" in words or "--log_as_json" in words)
        message, exit_code = _explain(error)
        log.write(Level.ERROR, message)
        return exit_code
    return 0


def _explain(error: BaseException) -> tuple[str, int]:
    """Give the message and the exit code of an error."""
    match error:
        case IstioInitError():
            return "; ".join((str(error), *getattr(error, "__notes__", ()))), error.exit_code
        case click.ClickException():
            return _usage_message(error), error.exit_code
        case KeyboardInterrupt():
            return "interrupted", EXIT_INTERRUPTED
        case _:
            return f"the system refused: {error}", IstioInitError.exit_code


def _usage_message(error: click.ClickException) -> str:
    """Put click's message in one line; a forgotten value is told as any other bad value."""
    if isinstance(error, click.BadOptionUsage):
        for option in OPTIONS:
            if error.option_name in option.flags:
                allowed = f"{option.metavar}: {option.help}"
                return str(InvalidInput(error.option_name, "no value was given; an empty one is written ''", allowed))
    return f"{shorten(error.format_message())} (istio-init --help shows what is allowed)"
