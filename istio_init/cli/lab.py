"""`istio-init lab`: a service mesh on this machine, to try flags in."""

from __future__ import annotations

import os
import shlex
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click

from istio_init.cli.bootstrap_options import BootstrapRequest
from istio_init.cli.command import Subcommand, print_text
from istio_init.cli.group import make_command
from istio_init.core.errors import InvalidInput, Unsupported
from istio_init.core.log import Level, log_options
from istio_init.core.option import Kind, Option, read_values, whole_number
from istio_init.kubernetes.agreement import Pair, contradictions
from istio_init.kubernetes.halves import read_rules, read_words
from istio_init.lab.protocol import DEFAULT_NAME
from istio_init.lab.protocol import down as down_command
from istio_init.lab.settings import (
    APP_UID,
    MAX_PODS,
    READY_TIMEOUT,
    LabSettings,
    mesh_pods,
    parse_families,
    proxy_arguments,
    proxy_environment,
)
from istio_init.lab.world import SHAPES
from istio_init.rules.commands import APPLY, VARIANTS
from istio_init.rules.environment import read_settings
from istio_init.rules.kernel.registry import AUTO
from istio_init.rules.kernel.registry import NAMES as BACKENDS
from istio_init.rules.layout import CURRENT, ISTIO_1_0
from istio_init.rules.layout import NAMES as LAYOUT_NAMES
from istio_init.rules.options import OPTIONS
from istio_init.rules.values import ID_MAX
from istio_init.sidecar.bootstrap import PROXY_OPTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.cli.command import Given
    from istio_init.core.log import Log
    from istio_init.lab.client import Lab

EXTRA = ("cryptography", "dnslib", "envoy", "grpc")  # the modules of the extra `lab`

EPILOG = """\b
Examples:
  istio-init lab up
  istio-init lab exec productpage -- curl -s http://reviews:9080/
  istio-init lab exec client -- curl -s http://reviews-v1:9080/
  istio-init lab exec --user 0 reviews -- iptables-save -c
  istio-init lab down
  istio-init lab up --layout current --ip-families IPv4,IPv6 --redirect-dns -m TPROXY
  istio-init lab exec productpage -- curl -6 -s http://reviews:9080/
"""


NAME = Option("name", ("--name",), metavar="NAME", default=DEFAULT_NAME,
              help="Name of the lab, to run several side by side. Default: lab.")  # fmt: skip
UP_OPTIONS = (
    NAME,
    Option("pods", ("--pods",), metavar="N", parse=whole_number(1, MAX_PODS), default="2",
           help="Number of pods with a proxy. Default: 2."),
    Option("layout", ("--layout",), metavar="LAYOUT", choices=LAYOUT_NAMES, default=ISTIO_1_0,
           help=f"Layout of the rules. Default: {ISTIO_1_0}."),
    Option("listeners", ("--listeners",), metavar="SHAPE", choices=SHAPES, default=None,
           help="Shape of Envoy's listeners. Default: the layout's."),
    Option("backend", ("--backend",), metavar="BACKEND", choices=BACKENDS, default=AUTO,
           help=f"istio-init's backend. Default: {AUTO}."),
    Option("iptables_variant", ("--iptables-variant",), metavar="VARIANT", choices=tuple(VARIANTS), default="auto",
           help="istio-init's variant of iptables. Default: auto."),
    Option("ip_families", ("--ip-families",), metavar="FAMILIES", default="IPv4",
           help=f"IPv4, IPv6, or IPv4,IPv6 for dual stack; IPv6 needs --layout {CURRENT}. The first is the pods' primary "
           "family. Default: IPv4."),
    Option("no_wait", ("--no-wait",), kind=Kind.FLAG,
           help="Do not wait for proxies to be ready, to debug one that never is."),
    Option("mutual_tls", ("--mutual-tls",), kind=Kind.FLAG, help="Use mutual TLS between proxies and control plane."),
    Option("proxy_words", ("--proxy",), metavar="FLAGS", kind=Kind.LINE, default="",
           help="More flags for `istio-init proxy`, quoted as one word."),
)  # fmt: skip
EXEC_OPTIONS = (
    NAME,
    Option("user", ("--user",), metavar="UID", parse=whole_number(0, ID_MAX), default=str(APP_UID),
           help=f"Default: {APP_UID}, the app's."),
    Option("pod", metavar="POD", kind=Kind.ARGUMENT),
    Option("words", metavar="-- COMMAND", kind=Kind.ARGUMENTS),
)  # fmt: skip


def check_extra() -> None:
    """Look for the modules of the extra `lab`.

    Raises:
        Unsupported: one is not installed.
    """
    missing = [name for name in EXTRA if find_spec(name) is None]
    if missing:
        message = f"the lab needs {', '.join(missing)}; run: pip install 'istio-init[lab]'"
        raise Unsupported(message)


def up(given: Given, log: Log) -> None:
    """Start a lab."""
    options = read_values(UP_OPTIONS, given)
    layout = options["layout"]
    read_settings(given, {}, layout)  # fails early on an invalid value
    values = ((option.name, given.get(option.name)) for option in OPTIONS)
    settings = LabSettings(
        pods=options["pods"],
        layout=layout,
        shape=options["listeners"] or "",
        backend=options["backend"],
        variant=options["iptables_variant"],
        families=parse_families(options["ip_families"]),
        interception=tuple((name, value) for name, value in values if value is not None),
        proxy=_words(options["proxy_words"]),
        mutual_tls=options["mutual_tls"],
        ready_timeout=0 if options["no_wait"] else READY_TIMEOUT,
    )
    for contradiction in _contradictions(settings):
        log.write(Level.WARNING, contradiction)
    started = _lab().up(options["name"], settings, partial(log.write, Level.INFO))
    addresses = ", ".join(f"{one['name']} {' '.join(one['addresses'])}" for one in started.status()["pods"])
    log.write(Level.INFO, f"lab {options['name']!r} is up: {addresses}; stop it with `{down_command(options['name'])}`")


def exec_(given: Given, log: Log) -> None:
    """Become a command in a pod."""
    del log
    options = read_values(EXEC_OPTIONS, given)
    if not (options["pod"] and options["words"]):
        raise InvalidInput("lab exec", "it lacks a pod or a command", "lab exec POD -- COMMAND")
    argv = _lab().find(options["name"]).command(options["pod"], options["words"], options["user"])
    os.execvp(argv[0], argv)  # noqa: S606 - deliberately without a shell


def status(given: Given, log: Log) -> None:
    """Print what the lab says of itself."""
    del log
    found = _lab().find(read_values((NAME,), given)["name"]).status()
    print_text("\n".join(_status(found)) + "\n")


def _status(found: dict[str, Any]) -> Iterator[str]:
    yield f"listeners: {found['shape']}"
    yield f"rules:     istio-init {shlex.join(found['rules'])}"
    for pod in found["pods"]:
        yield ""
        yield f"{pod['name']}  {'  '.join(pod['addresses'])}"
        for program, how in pod["programs"].items():
            state = f"process {how['pid']}" if how["status"] is None else f"exited with status {how['status']}"
            yield f"  {program:14} {state:26} log {how['log']}"
        for node, types in found["discovery"].items():
            if node.split("~")[1] == pod["address"]:
                yield f"  {'configuration':14} {', '.join(_state(kind, how) for kind, how in types.items())}"


def down(given: Given, log: Log) -> None:
    """Stop a lab."""
    del log
    _lab().find(read_values((NAME,), given)["name"]).down()


def _contradictions(settings: LabSettings) -> tuple[str, ...]:
    """Check the lab's rules and proxy flags for contradictions; rejects invalid proxy flags."""
    pod = mesh_pods(settings)[0]
    given = read_words(PROXY_OPTIONS, proxy_arguments(settings, pod)[1:], "--proxy", "proxy")
    wanted = BootstrapRequest.of(given, proxy_environment(settings, pod))
    return contradictions(Pair(read_rules((f"--layout={settings.layout}", *settings.flags), {}, "lab up"), wanted.settings))


def _lab() -> type[Lab]:
    from istio_init.lab.client import Lab

    return Lab


def _state(kind: str, how: dict[str, Any]) -> str:
    if how["nack"]:
        return f"{kind} rejected: {how['nack']}"
    return f"{kind} {'accepted' if how['sent'] == how['acked'] else 'sent'}"


def _words(text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise InvalidInput("--proxy", f"{text!r}: {error}", "flags in shell syntax, quoted as one word") from None


UP_HELP = "Start the pods, each with an app and an Envoy. The flags below override those of an injected pod."
# Today's -q is a list of ports; here it is --quiet, as in `apply`.
SETTINGS = tuple(option for option in APPLY if option.name in {one.name for one in OPTIONS})
COMMANDS = (
    Subcommand("up", UP_HELP, "", (*UP_OPTIONS, *SETTINGS, *log_options()), up),
    Subcommand("exec", "Run a command in a pod, given by its name or that of its service.", "", EXEC_OPTIONS, exec_),
    Subcommand("status", "Show the pods, their programs, and the configuration state of each Envoy.", "", (NAME,), status),
    Subcommand("down", "Stop the lab, and remove everything that it created.", "", (NAME,), down),
)
HELP = "Run a service mesh on this machine: pods as network namespaces with apps, Envoys, rules and a control plane."
GROUP = click.Group("lab", {one.name: make_command(one) for one in COMMANDS}, help=HELP, epilog=EPILOG, callback=check_extra)
# What stands behind the pod's name is a command line of its own.
GROUP.commands["exec"].context_settings["ignore_unknown_options"] = True
