"""The flags of today's `istio-iptables` that control how it runs, not which rules it writes, and their meaning here."""

from __future__ import annotations

from istio_init.core.errors import InvalidInput
from istio_init.core.light import TYPE_CHECKING, Any, NamedTuple
from istio_init.core.log import Level
from istio_init.core.option import Kind, Option, Value, read_chosen
from istio_init.rules import values as parse
from istio_init.rules.environment import choose
from istio_init.rules.kernel.registry import NFT, agree
from istio_init.rules.layout import find
from istio_init.rules.model import Variant

if TYPE_CHECKING:
    from collections.abc import Mapping

PROBE_PORT = 15002
PROBE_TIMEOUT = 5.0  # seconds
BINARIES = ("legacy", "nft")
# Istio's names of log levels. Every error of this program is fatal, so `error` and `fatal` are the same.
LEVELS = {
    "debug": Level.DEBUG,
    "info": Level.INFO,
    "warn": Level.WARNING,
    "error": Level.ERROR,
    "fatal": Level.ERROR,
    "none": Level.NONE,
}
DEFAULT_SCOPE, EVERY_SCOPE = "default", "all"


def _timeout(text: str, where: str) -> float:
    from istio_init.core.durations import SECOND, parse_duration

    nanoseconds = parse_duration(text, where)
    if nanoseconds <= 0:
        raise InvalidInput(where, f"{text!r} is not a positive duration", "a duration above zero, such as 5s")
    return nanoseconds / SECOND


def _binary(text: str, where: str) -> str:
    if text not in ("", *BINARIES):
        raise InvalidInput(where, f"{text!r} is not an iptables variant", " or ".join(BINARIES))
    return text


def _level(text: str, where: str) -> Level | None:
    """Read log levels by scope; this program has a single scope, to which `default` and `all` apply."""
    levels: dict[str, Level] = {}
    for item in filter(None, map(str.strip, text.split(","))):
        scope, colon, word = item.rpartition(":")
        if word not in LEVELS or ":" in scope or bool(colon) is not bool(scope):
            allowed = f"LEVEL or SCOPE:LEVEL, comma-separated; levels are {', '.join(LEVELS)}"
            raise InvalidInput(where, f"{item!r} is not a level", allowed)
        levels[scope or DEFAULT_SCOPE] = LEVELS[word]
    return levels.get(EVERY_SCOPE, levels.get(DEFAULT_SCOPE))


def _switch(name: str, variable: str, text: str, *flags: str) -> Option:
    return Option(
        name, (*flags, f"--{name.replace('_', '-')}"), (variable,), "BOOL", text, kind=Kind.SWITCH, parse=parse.boolean
    )


# How the log is written; read before everything else, so that reading can log.
LOG_FLAGS = (
    Option("log_output_level", ("--log_output_level",), (), "LEVELS",
           f"Log level: one of {', '.join(LEVELS)}, or SCOPE:LEVEL, comma-separated, for the scopes "
           f"{DEFAULT_SCOPE} and {EVERY_SCOPE}. Takes precedence over -v and --quiet.", parse=_level,
           offered=tuple(LEVELS)),
    Option("log_as_json", ("--log_as_json",), (), "BOOL", "The same as --log-format json.", kind=Kind.SWITCH,
           parse=parse.boolean),
)  # fmt: skip

RUN_FLAGS = (
    _switch("dry_run", "DRY_RUN", "Print the rules and change nothing; needs no privileges. With --cleanup-only: print what "
            "would be removed.", "-n"),
    _switch("skip_rule_apply", "SKIP_RULE_APPLY", "Write no rule; with --run-validation, validate those that are there."),
    _switch("run_validation", "RUN_VALIDATION",
            "Open connections on each path, and exit with 126 if one does not go where the rules should send it."),
    Option("probe_port", ("--iptables-probe-port",), ("IPTABLES_PROBE_PORT",), "PORT",
           f"Port that --run-validation connects to if no flag names one. Default: {PROBE_PORT}.",
           parse=parse.port, default=str(PROBE_PORT)),
    Option("probe_timeout", ("--probe-timeout",), ("PROBE_TIMEOUT",), "DURATION",
           "Timeout for --run-validation. Default: 5s.", parse=_timeout),
    Option("network_namespace", ("--network-namespace",), ("NETWORK_NAMESPACE",), "PATH",
           "Work in this network namespace, such as /proc/PID/ns/net. Default: this process's own.", default="",
           is_path=True),
    _switch("cleanup_only", "CLEANUP_ONLY", "Remove our rules and write none, as `istio-init clean` does."),
    _switch("reconcile", "RECONCILE",
            "Always on: existing rules of ours that differ are replaced, in one transaction per table. "
            "Without it, today's tool adds to them."),
    _switch("force_apply", "FORCE_APPLY", "No effect: rules already in place are never rewritten, and those that differ "
            "always are."),
    _switch("native_nftables", "NATIVE_NFTABLES", "The same as --backend nft."),
    Option("force_iptables_binary", ("--force-iptables-binary",), ("FORCE_IPTABLES_BINARY",), "VARIANT",
           f"The same as --iptables-variant: {' or '.join(BINARIES)}.", parse=_binary, default="",
           offered=BINARIES),
    _switch("cni_mode", "CNI_MODE", "No effect: each network namespace has its own lock anyway."),
    *LOG_FLAGS,
    Option("log_target", ("--log_target",), (), "PATH", "No effect: the log goes to standard error.", is_path=True),
    Option("log_caller", ("--log_caller",), (), "SCOPES", "No effect."),
    Option("log_stacktrace_level", ("--log_stacktrace_level",), (), "LEVELS", "No effect."),
    Option("vklog", ("--vklog",), (), "LEVEL", "No effect."),
)  # fmt: skip

# Flags without effect, and why; the warning when one is given.
NO_EFFECT = {
    "force_apply": "rules already in place are never rewritten, and those that differ always are",
    "cni_mode": "each network namespace has its own lock anyway",
    "log_target": "the log goes to standard error",
    "log_caller": "messages do not show where in the program they come from",
    "log_stacktrace_level": "messages have no stack traces",
    "vklog": "this program uses no Kubernetes library",
}


class RunFlags(NamedTuple):
    """The values of `RUN_FLAGS`.

    Attributes:
        probe_timeout: seconds.
        network_namespace: path of the namespace; "" for this process's own.
        binary: an iptables variant, or "".
        wheres: `Option.name` → the flag or variable that gave the value, for those that were given.
        warnings: what the user should know about accepted flags.
    """

    dry_run: bool
    skip_rule_apply: bool
    run_validation: bool
    cleanup_only: bool
    native_nftables: bool
    probe_port: int
    probe_timeout: float
    network_namespace: str
    binary: str
    wheres: Mapping[str, str]
    warnings: tuple[str, ...]

    @classmethod
    def of(cls, given: Mapping[str, Any], environ: Mapping[str, str], layout: str) -> RunFlags:
        """Read these flags and their variables, fill in defaults, and validate them.

        Args:
            given: the values on the command line, by `Option.name`.
            environ: the environment variables.
            layout: name or alias of the layout.

        Raises:
            InvalidInput: a value is not allowed, or two flags contradict each other.
        """
        variables = {name: Value(text, f"${name}") for name, text in environ.items()}
        values = choose(RUN_FLAGS, given, variables, find(layout))
        found = read_chosen(RUN_FLAGS, values)
        flags = cls(
            dry_run=bool(found["dry_run"]),
            skip_rule_apply=bool(found["skip_rule_apply"]),
            run_validation=bool(found["run_validation"]),
            cleanup_only=bool(found["cleanup_only"]),
            native_nftables=bool(found["native_nftables"]),
            probe_port=found["probe_port"],
            probe_timeout=found["probe_timeout"] or PROBE_TIMEOUT,
            network_namespace=found["network_namespace"],
            binary=found["force_iptables_binary"],
            wheres={name: value.where for name, value in values.items()},
            warnings=tuple(_warnings(values, found)),
        )
        flags.refuse_contradictions()
        return flags

    def refuse_contradictions(self) -> None:
        """Reject flags that contradict each other.

        Raises:
            InvalidInput: two do.
        """
        if self.cleanup_only:
            for name in ("skip_rule_apply", "run_validation"):
                if getattr(self, name):
                    problem = f"it removes rules, which contradicts {self.wheres[name]}"
                    raise InvalidInput(self.wheres["cleanup_only"], problem, "one of the two")
        if self.dry_run and self.run_validation:
            problem = f"it needs rules in the kernel, but {self.wheres['dry_run']} writes none"
            raise InvalidInput(self.wheres["run_validation"], problem, "one of the two")

    def backend(self, named: str) -> str:
        """Return the backend that these flags and --backend (`named`) select together.

        Raises:
            InvalidInput: the two contradict each other.
        """
        if not self.native_nftables:
            return named
        if not agree(named, NFT):
            raise InvalidInput(self.wheres["native_nftables"], f"it contradicts --backend {named}", "one of the two")
        return NFT

    def variant(self, named: Variant | None) -> Variant | None:
        """Return the iptables variant that these flags and --iptables-variant (`named`) select together.

        Raises:
            InvalidInput: the two contradict each other.
        """
        if self.binary and named not in (None, self.binary):
            problem = f"{self.binary!r} contradicts --iptables-variant {named}"
            raise InvalidInput(self.wheres["force_iptables_binary"], problem, "one of the two")
        return Variant(self.binary) if self.binary else named


def _warnings(values: Mapping[str, Value], found: Mapping[str, Any]) -> list[str]:
    warnings = []
    for name, why in NO_EFFECT.items():
        if name in values and found[name] is not False:
            warnings.append(f"{values[name].where} has no effect: {why}")
    if found["reconcile"] is False:
        warnings.append(f"{values['reconcile'].where} has no effect: existing rules of ours that differ are always replaced")
    if not found["run_validation"]:
        given = [values[name].where for name in ("probe_port", "probe_timeout") if name in values]
        warnings += [f"{where} has no effect: it applies only with --run-validation" for where in given]
    return warnings
