"""The option tables of `apply`, `istio-iptables` and `clean`, the commands that write rules."""

from __future__ import annotations

from istio_init.core.light import TYPE_CHECKING, Any, NamedTuple
from istio_init.core.log import log_options
from istio_init.core.option import Kind, Option, Value, read_chosen, read_values, whole_number
from istio_init.rules import values as parse
from istio_init.rules.environment import choose, has_environment_file
from istio_init.rules.kernel.host import HOST_FLAG, HOST_VARIABLE
from istio_init.rules.kernel.locks import Waits
from istio_init.rules.kernel.registry import AUTO, BACKENDS, FALLBACK, NAMES, PREFERRED
from istio_init.rules.layout import ALIASES, CURRENT, ISTIO_1_0, find
from istio_init.rules.layout import NAMES as LAYOUT_NAMES
from istio_init.rules.model import Family, Variant
from istio_init.rules.options import OPTIONS
from istio_init.rules.run_flags import RUN_FLAGS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from istio_init.core.runner import Observer
    from istio_init.rules.kernel.engine import Engine

IPTABLES_COMMAND = "istio-iptables"
VARIANTS = {"auto": None, "legacy": Variant.LEGACY, "nft": Variant.NFT}
FAMILIES = {"all": tuple(Family), "ipv4": (Family.IPV4,), "ipv6": (Family.IPV6,)}
FORMATS = ("restore", "commands", "nft", "json", "table")
WAIT_MAX = 3600  # seconds

HOST = Option(
    "host", (HOST_FLAG,), (HOST_VARIABLE,), "BOOL",
    "Write even if this is a machine's own network namespace, or a Kubernetes node's (hostNetwork), which is otherwise "
    "refused. Default: false; true where an environment file of Istio 1.0 is readable, as on its VMs.",
    kind=Kind.SWITCH, parse=parse.boolean,
)  # fmt: skip

RUN_OPTIONS = (
    Option("family", ("--family",), metavar="FAMILY", choices=tuple(FAMILIES), default="all",
           help="Address families to work on. Default: all."),
    Option("backend", ("--backend",), metavar="BACKEND", choices=NAMES, default=AUTO,
           help=f"{'; '.join(f'{name}: {row.summary}' for name, row in BACKENDS.items())}. "
           f"Default: {AUTO}: {PREFERRED}, or {FALLBACK} where no iptables works."),
    Option("iptables_variant", ("--iptables-variant",), metavar="VARIANT", choices=tuple(VARIANTS), default="auto",
           help="Which iptables to use. Default: auto, the one that already has rules, else the one that works."),
    Option("lock_wait", ("--lock-wait",), metavar="SECONDS", parse=whole_number(0, WAIT_MAX), default="10",
           help="How long to wait for another program to release a lock. Default: 10."),
    HOST,
    Option("tool_timeout", ("--tool-timeout",), metavar="SECONDS", parse=whole_number(1, WAIT_MAX), default="30",
           help="How long each iptables or nft program may take before it is killed. Default: 30."),
)  # fmt: skip

FORMAT = Option(
    "output_format", ("--format",), metavar="FORMAT", choices=FORMATS,
    help="What --dry-run prints: a script for iptables-restore --noflush, shell commands, a script for nft -f, JSON, or a "
    "table with the reason for each rule. Default: restore; with --backend nft: nft.",
)  # fmt: skip


def layout_option(default: str) -> Option:
    """Return the option `--layout`, with the given default."""
    aliases = "; ".join(f"{alias} is {name}" for alias, name in ALIASES.items())
    text = f"Which rules to write: those of Istio 1.0, or those of today's Istio ({aliases}). Default: {default}."
    return Option("layout", ("--layout",), metavar="LAYOUT", choices=LAYOUT_NAMES, default=default, help=text)


# In today's istio-iptables, -q is a list of ports; in `apply`, it has always meant --quiet.
_SETTINGS = tuple(option._replace(flags=tuple(flag for flag in option.flags if flag != "-q")) for option in OPTIONS)

APPLY = (
    layout_option(ISTIO_1_0),
    *_SETTINGS,
    Option("dry_run", ("-n", "--dry-run"), kind=Kind.FLAG, help="Print the rules and change nothing; needs no privileges."),
    FORMAT,
    *RUN_OPTIONS,
    *log_options(),
)
ISTIO_IPTABLES = (layout_option(CURRENT), *RUN_FLAGS, *OPTIONS, FORMAT, *RUN_OPTIONS, *log_options(quiet=("--quiet",)))
CLEAN = (*RUN_OPTIONS, *log_options())


def is_host_meant(given: Mapping[str, Any], environ: Mapping[str, str]) -> bool:
    """Return whether the user says that rules may be meant for the host itself, not for a pod.

    Args:
        given: values by `Option.name`.
        environ: the environment variables.

    Raises:
        InvalidInput: the value is not allowed.
    """
    variables = {name: Value(environ[name], f"${name}") for name in HOST.variables if name in environ}
    meant: bool | None = read_chosen((HOST,), choose((HOST,), given, variables, find(CURRENT)))[HOST.name]
    return has_environment_file(environ) if meant is None else meant


class Run(NamedTuple):
    """How rules are read and written: the values of `RUN_OPTIONS`.

    Attributes:
        families: the address families to work on.
        backend: a name of `istio_init.rules.kernel.registry.NAMES`.
        variant: the iptables variant; None detects it.
        waits: how long to wait for locks and for tools.
        host: whether a machine's own network namespace, or a Kubernetes node's, may be written to.
    """

    families: tuple[Family, ...]
    backend: str
    variant: Variant | None
    waits: Waits
    host: bool

    @classmethod
    def of(cls, given: Mapping[str, Any], environ: Mapping[str, str]) -> Run:
        """Read and validate the options.

        Args:
            given: values by `Option.name`.
            environ: the environment variables.

        Raises:
            InvalidInput: a value is not allowed.
        """
        values = read_values(RUN_OPTIONS, given)
        variant = VARIANTS[values["iptables_variant"]]
        waits = Waits(values["lock_wait"], values["tool_timeout"])
        host = is_host_meant(given, environ)
        return cls(FAMILIES[values["family"]], values["backend"], variant, waits, host)

    def open_engine(self, observe: Observer) -> Engine:
        """Create the engine for these options; its modules are imported only here.

        Raises:
            InvalidInput: the backend contradicts the variant.
        """
        from istio_init.rules.kernel.engine import open_engine

        return open_engine(self.backend, self.variant, self.waits, observe, self.host)
