"""Options that several commands share."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from istio_init.core.log import Level, Log
from istio_init.rules.kernel.registry import AUTO, BACKENDS, FALLBACK, NAMES, PREFERRED
from istio_init.rules.model import Family, Variant
from istio_init.rules.options import LAYOUTS, OPTIONS, Option

if TYPE_CHECKING:
    from istio_init.rules.kernel.engine import Engine

Function = Callable[..., None]
Decorator = Callable[[Function], Function]

TAKEN = frozenset({"-q"})  # today's -q is a list of ports; here it has been --quiet from the start
SWITCHED_ON = "true"
VARIANTS = {"auto": None, "legacy": Variant.LEGACY, "nft": Variant.NFT}
FAMILIES = {"all": tuple(Family), "ipv4": (Family.IPV4,), "ipv6": (Family.IPV6,)}


class TextValue(click.ParamType):  # type: ignore[type-arg] # generic since click 8.4 only
    """Text that may be empty, but is not the next flag: `-b -d ""` is a forgotten value, not the port `-d`."""

    name = "text"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Refuse what begins like a flag: no setting has such a value. A negative number is for the setting to refuse."""
        if value.startswith("-") and not value[1:2].isdigit():
            self.fail(f"{value!r} stands where its value should be; an empty value is written ''", param, ctx)
        return value


class Run(NamedTuple):
    """How rules are reached and what is logged: the options of `run_options`, as the commands use them."""

    families: tuple[Family, ...]
    backend: str
    variant: Variant | None
    lock_wait: int
    log: Log

    @classmethod
    def take(cls, options: dict[str, Any]) -> "Run":
        """Take the shared options out of a command's options, and start to log as they say."""
        log = take_log(options)
        return cls(
            FAMILIES[options.pop("family")],
            options.pop("backend"),
            VARIANTS[options.pop("iptables_variant")],
            options.pop("lock_wait"),
            log,
        )

    def open_engine(self) -> "Engine":
        """Make the engine that was asked for; only now are its modules imported."""
        from istio_init.rules.kernel.engine import open_engine

        return open_engine(self.backend, self.variant, self.lock_wait, self.log.debug)


class CommandWithSwitches(click.Command):
    """A command whose switches take a value behind = only, as Go's flags do: `--redirect-dns`, `--redirect-dns=false`.

    Without this, `--redirect-dns -b 80` would do, but `--redirect-dns 80` would take 80 for its value.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Write out the value of each switch."""
        switches = {flag for one in self.params if getattr(one, "flag_value", None) == SWITCHED_ON for flag in one.opts}
        return super().parse_args(ctx, [word for arg in args for word in _written_out(arg, switches)])


def _written_out(argument: str, switches: set[str]) -> tuple[str, ...]:
    flag, equals, value = argument.partition("=")
    if flag not in switches:
        return (argument,)
    if flag.startswith("--"):
        return (f"{flag}={value if equals else SWITCHED_ON}",)
    return (flag, value if equals else SWITCHED_ON)  # click would take the = of `-n=false` for a part of the value


def layout_option(default: str) -> Decorator:
    """Make the option that chooses between the layouts.

    Args:
        default: `istio-1.0` or `current`.
    """
    text = f"Which rules: those of Istio 1.0, or those of today's Istio. Default: {default}."
    return click.option("--layout", type=click.Choice(LAYOUTS), default=default, help=text)


def setting_options(command: Function) -> Function:
    """Add a flag for each setting; what is not given arrives as None."""
    return flag_options(command, OPTIONS, TAKEN)


def flag_options(command: Function, options: Sequence[Option], taken: frozenset[str] = frozenset()) -> Function:
    """Add a flag for each row of a table; what is not given arrives as None.

    Args:
        command: the function below.
        options: the table.
        taken: flags that mean something else in this command.
    """
    return decorate(command, [_flag_option(option, taken) for option in options if option.flags])


def _flag_option(option: Option, taken: frozenset[str]) -> Decorator:
    variables = f" [{', '.join(option.variables)}]" if option.variables else ""
    make = partial(click.option, is_flag=False, flag_value=SWITCHED_ON) if option.is_switch else click.option
    return make(
        *(flag for flag in option.flags if flag not in taken),
        option.name,
        type=TextValue(),
        metavar=option.metavar,
        help=f"{option.help}{variables}",
    )


def take_log(options: dict[str, Any]) -> Log:
    """Take the options of `log_options` out of a command's options, and start to log as they say."""
    verbose, quiet = options.pop("verbose"), options.pop("quiet")
    level = Level.DEBUG if verbose else Level.ERROR if quiet else Level.INFO
    log = Log(options.pop("log_format") == "json", level)
    click.get_current_context().find_root().obj = log
    return log


def log_options(command: Function, quiet: Sequence[str] = ("-q", "--quiet")) -> Function:
    """Add the options that `take_log` takes, `quiet` under these flags."""
    return decorate(
        command,
        [
            click.option(
                "--log-format",
                type=click.Choice(["text", "json"]),
                default="text",
                help="Form of the log, which goes to standard error. Default: text.",
            ),
            click.option("-v", "--verbose", is_flag=True, help="Log more: each program that is run, and its input."),
            click.option(*quiet, is_flag=True, help="Log errors only."),
        ],
    )


def run_options(command: Function, quiet: Sequence[str] = ("-q", "--quiet")) -> Function:
    """Add the options that `Run.take` takes, `quiet` under these flags."""
    return decorate(
        log_options(command, quiet),
        [
            click.option(
                "--family",
                type=click.Choice(list(FAMILIES)),
                default="all",
                help="Address families to work on. Default: all.",
            ),
            click.option(
                "--backend",
                type=click.Choice(NAMES),
                default=AUTO,
                help=f"{'; '.join(f'{name}: {row.summary}' for name, row in BACKENDS.items())}. "
                f"Default: {AUTO}, which is {PREFERRED}, or {FALLBACK} where no iptables works.",
            ),
            click.option(
                "--iptables-variant",
                type=click.Choice(list(VARIANTS)),
                default="auto",
                help="Default: auto, the one that has rules here already, else the one that works.",
            ),
            click.option(
                "--lock-wait",
                type=click.IntRange(0, 3600),
                default=10,
                metavar="SECONDS",
                help="How long to wait for a program that holds a lock. Default: 10.",
            ),
        ],
    )


def decorate(command: Function, decorators: Sequence[Decorator]) -> Function:
    """Apply decorators so that click lists their options in this order."""
    # click lists options in the order in which they stand above a function: the last one is applied first.
    for decorator in reversed(decorators):
        command = decorator(command)
    return command
