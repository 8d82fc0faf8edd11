"""The check that a pod's rules and its proxy fit together: its options, and where the two halves come from."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from click.core import ParameterSource

from istio_init.cli.options import Function, decorate
from istio_init.core.errors import InvalidInput
from istio_init.core.log import Level, Log
from istio_init.rules.model import PROXY_UID
from istio_init.rules.values import ID_MAX

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from istio_init.rules.settings import Settings
    from istio_init.sidecar.bootstrap.settings import ProxySettings


class Pod(NamedTuple):
    """What a pod's proxy is given, and what is known of its other half.

    Attributes:
        role: of the proxy.
        options: the command's, those of the manifest included.
        environ: the proxy's variables.
        rules: the settings of the interception; None where no check was asked for.
        run_as_uid: the user that Envoy runs as.
        run_as_gid: the group, or None where nobody said.
        container_ports: see `istio_init.kubernetes.agreement.Pair`.
    """

    role: str
    options: dict[str, Any]
    environ: Mapping[str, str]
    rules: Settings | None = None
    run_as_uid: int = PROXY_UID
    run_as_gid: int | None = None
    container_ports: tuple[tuple[str, int], ...] = ()

    @classmethod
    def take(cls, role: str, options: dict[str, Any]) -> Pod:
        """Read the options of `agreement_options`.

        Raises:
            InvalidInput: a flag or the manifest is not allowed.
        """
        flags, manifest, uid = options["interception"], options["manifest"], options["run_as_uid"]
        if manifest is not None:
            if flags is not None:
                raise InvalidInput("--manifest", "the manifest has the flags that --interception gives", "one of the two")
            return _of_manifest(manifest, uid)
        if flags is not None:
            rules = read_rules(_split(flags), {}, "--interception")
            return cls(role, options, os.environ, rules, PROXY_UID if uid is None else uid)
        if uid is not None:
            problem = "it is compared with the rules, and none were given"
            raise InvalidInput("--run-as-uid", problem, "with --interception or --manifest")
        return cls(role, options, os.environ)


def agreement_options(command: Function) -> Function:
    """Add the options that `Pod.take` takes."""
    return decorate(
        command,
        [
            click.option(
                "--interception",
                metavar="FLAGS",
                help="Check that the proxy fits the rules that istio-init makes of these flags, written as one word: "
                "\"-u 1337 -i '*' -b 9080\", or today's, \"istio-iptables -u 1337 -b '*'\". Users and groups are numbers. "
                "A contradiction is bad input.",
            ),
            click.option(
                "--manifest",
                metavar="FILE",
                help="Check the same of a pod's manifest, which gives both halves: the init container istio-init, and the "
                "container istio-proxy, whose variables count instead of the environment; flags given here win over its "
                "own. Its address is not known: unless --ip gives it, 192.0.2.1 stands for it.",
            ),
            click.option(
                "--run-as-uid",
                type=click.IntRange(0, ID_MAX),
                metavar="UID",
                help=f"User that Envoy runs as, for the check. Default: runAsUser of the manifest, else {PROXY_UID}.",
            ),
        ],
    )


def require_agreement(pod: Pod, settings: ProxySettings, text: str, log: Log) -> None:
    """Log each contradiction between a proxy and its rules, and end the program if there is one.

    Args:
        pod: both halves; without rules nothing is compared.
        settings: the proxy's.
        text: the bootstrap file.
        log: where the outcome goes.

    Raises:
        InvalidInput: `text` is a user's own file, and no YAML.
    """
    if pod.rules is None:
        return
    from istio_init.kubernetes.agreement import Pair, contradictions, listener_ports
    from istio_init.kubernetes.manifest import read_yaml

    try:
        listeners = frozenset().union(*map(listener_ports, read_yaml(text)))
    except ValueError as error:
        raise InvalidInput("--customConfigFile", str(error), "JSON or YAML") from None
    pair = Pair(pod.rules, settings, listeners, pod.run_as_uid, pod.run_as_gid, pod.container_ports)
    found = contradictions(pair)
    for line in found:
        log.write(Level.ERROR, line)
    if found:
        click.get_current_context().exit(InvalidInput.exit_code)
    ports = f"outbound port {pod.rules.envoy_port}, inbound port {pod.rules.inbound_capture_port}"
    log.write(Level.INFO, f"both halves agree: {ports}, uid {pod.run_as_uid}, {pod.rules.mode}")


def _of_manifest(path: str, uid: int | None) -> Pod:
    from istio_init.cli.proxy import proxy
    from istio_init.core.files import read_text
    from istio_init.kubernetes.manifest import INIT, PLACEHOLDER_ADDRESS, PROXY, read_manifest

    where = f"--manifest {path}"
    manifest = read_manifest(read_text(path, "--manifest"), where)
    given = parse_words(proxy, manifest.proxy.words, f"{where}: container {PROXY}")
    context = click.get_current_context()
    options: dict[str, Any] = {
        name: given[name] if name in given and _is_left_to_the_manifest(context, name) else value
        for name, value in context.params.items()
    }
    known_uid = PROXY_UID if manifest.run_as_uid is None else manifest.run_as_uid
    return Pod(
        options.pop("role"),
        options,
        {"INSTANCE_IP": PLACEHOLDER_ADDRESS, **manifest.proxy.environ},
        read_rules(manifest.rules.words, manifest.rules.environ, f"{where}: init container {INIT}"),
        known_uid if uid is None else uid,
        manifest.run_as_gid if uid is None else None,
        manifest.container_ports,
    )


def _is_left_to_the_manifest(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is not ParameterSource.COMMANDLINE


def _split(text: str) -> list[str]:
    import shlex

    try:
        return shlex.split(text)
    except ValueError as error:
        raise InvalidInput("--interception", f"{text!r}: {error}", "flags as a shell splits them") from None


def read_rules(words: Sequence[str], environ: Mapping[str, str], where: str) -> Settings:
    """Read what an init container is given, as `apply` reads it, or as `istio-iptables` where that is the first word.

    Raises:
        InvalidInput: a flag or a variable is not allowed; `where` says whose it is.
    """
    from istio_init.rules.environment import ENVIRONMENT_FILES, collect
    from istio_init.rules.options import OPTIONS
    from istio_init.rules.settings import NO_ACCOUNTS, parse_settings

    # Neither this machine's own environment files nor its users, addresses and name servers are the pod's.
    no_files = dict.fromkeys((name for name, _ in ENVIRONMENT_FILES), os.devnull)
    try:
        given = _read_flags(words, environ, where)
        flags = {option.name: given.get(option.name) for option in OPTIONS}
        values = collect(flags, {**no_files, **environ}, given["layout"])
        return parse_settings(values, NO_ACCOUNTS, given["layout"])
    except InvalidInput as error:
        if error.where == where:
            raise
        raise InvalidInput(f"{where}: {error.where}", error.problem, error.allowed) from None


def _read_flags(words: Sequence[str], environ: Mapping[str, str], where: str) -> dict[str, Any]:
    from istio_init.kubernetes.manifest import IPTABLES_COMMAND

    if list(words[:1]) != [IPTABLES_COMMAND]:
        from istio_init.cli.apply import apply

        return parse_words(apply, words, where)
    from istio_init.cli.istio_iptables import istio_iptables
    from istio_init.cli.steering import Steering

    given = parse_words(istio_iptables, words[1:], where)
    Steering.take(given, environ)  # these flags make no rule, but they must be right
    return given


def parse_words(command: click.Command, words: Sequence[str], where: str) -> dict[str, Any]:
    """Read a command line without running it.

    Raises:
        InvalidInput: it is not one of the command's; `where` says whose it is.
    """
    reader = type(command)(command.name, params=command.params, add_help_option=False)
    try:
        return reader.make_context(str(command.name), list(words)).params
    except click.UsageError as error:
        raise InvalidInput(where, error.format_message(), f"what `istio-init {command.name} --help` shows") from None
