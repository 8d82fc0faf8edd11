"""`istio-init lab`: a service mesh on this machine, to try flags in."""

from __future__ import annotations

import os
import shlex
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click

from istio_init.cli.options import VARIANTS, log_options, setting_options, take_log
from istio_init.core.errors import InvalidInput, Unsupported
from istio_init.core.log import Level
from istio_init.lab.protocol import DEFAULT_NAME
from istio_init.lab.protocol import down as down_command
from istio_init.lab.settings import (
    APP_UID,
    READY_TIMEOUT,
    SHAPES,
    LabSettings,
    mesh_pods,
    parse_families,
    proxy_arguments,
    proxy_environment,
)
from istio_init.rules.environment import read_settings
from istio_init.rules.kernel.registry import NAMES as BACKENDS
from istio_init.rules.options import CURRENT, ISTIO_1_0, LAYOUTS, OPTIONS

if TYPE_CHECKING:
    from istio_init.lab.client import Lab

EXTRA = ("cryptography", "dnslib", "envoy", "grpc")  # the modules of the extra `lab`

name_option = click.option(
    "--name", default=DEFAULT_NAME, metavar="NAME", help="Name of the lab, to run several side by side. Default: lab."
)

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


@click.group(epilog=EPILOG)
def lab() -> None:
    """Run a service mesh on this machine: pods as network namespaces with apps, Envoys, rules and a control plane."""
    missing = [name for name in EXTRA if find_spec(name) is None]
    if missing:
        message = f"the lab needs {', '.join(missing)}; run: pip install 'istio-init[lab]'"
        raise Unsupported(message)


@lab.command()
@name_option
@click.option("--pods", type=click.IntRange(1, 100), default=2, metavar="N", help="Number of pods with a proxy. Default: 2.")
@click.option("--layout", type=click.Choice(LAYOUTS), default=ISTIO_1_0, help=f"Layout of the rules. Default: {ISTIO_1_0}.")
@click.option("--listeners", type=click.Choice(SHAPES), help="Shape of Envoy's listeners. Default: the layout's.")
@click.option("--backend", type=click.Choice(BACKENDS), default="auto", help="istio-init's backend. Default: auto.")
@click.option(
    "--iptables-variant", type=click.Choice(list(VARIANTS)), default="auto", help="iptables to use. Default: auto."
)
@click.option(
    "--ip-families",
    default="IPv4",
    metavar="FAMILIES",
    help=f"IPv4, IPv6, or IPv4,IPv6 for dual stack; IPv6 needs --layout {CURRENT}. The first is the pods' primary family. "
    "Default: IPv4.",
)
@click.option("--no-wait", is_flag=True, help="Do not wait for proxies to be ready, to debug one that never is.")
@click.option("--mutual-tls", is_flag=True, help="Use mutual TLS between proxies and control plane.")
@click.option(
    "--proxy",
    "proxy_words",
    default="",
    metavar="FLAGS",
    help="More flags for `istio-init proxy`, quoted as one word.",
)
@setting_options
@log_options
def up(name: str, **options: Any) -> None:
    """Start the pods, each with an app and an Envoy. The flags below override those of an injected pod."""
    log = take_log(options)
    layout = options["layout"]
    read_settings(options, {}, layout)  # fails early on an invalid value
    values = ((option.name, options.get(option.name)) for option in OPTIONS)
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
    started = _lab().up(name, settings, partial(log.write, Level.INFO))
    addresses = ", ".join(f"{one['name']} {' '.join(one['addresses'])}" for one in started.status()["pods"])
    log.write(Level.INFO, f"lab {name!r} is up: {addresses}; stop it with `{down_command(name)}`")


@lab.command(name="exec", context_settings={"ignore_unknown_options": True})
@name_option
@click.option("--user", type=click.IntRange(0), default=APP_UID, metavar="UID", help=f"Default: {APP_UID}, the app's.")
@click.argument("pod")
@click.argument("words", metavar="-- COMMAND", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(name: str, user: int, pod: str, words: tuple[str, ...]) -> None:
    """Run a command in a pod, given by its name or that of its service."""
    argv = _lab().find(name).command(pod, words, user)
    os.execvp(argv[0], argv)  # noqa: S606 - deliberately without a shell


@lab.command()
@name_option
def status(name: str) -> None:
    """Show the pods, their programs, and the configuration state of each Envoy."""
    found = _lab().find(name).status()
    click.echo(f"listeners: {found['shape']}\nrules:     istio-init {shlex.join(found['rules'])}")
    for pod in found["pods"]:
        click.echo(f"\n{pod['name']}  {'  '.join(pod['addresses'])}")
        for program, how in pod["programs"].items():
            state = f"process {how['pid']}" if how["status"] is None else f"exited with status {how['status']}"
            click.echo(f"  {program:14} {state:26} log {how['log']}")
        for node, types in found["discovery"].items():
            if node.split("~")[1] == pod["address"]:
                click.echo(f"  {'configuration':14} {', '.join(_state(kind, how) for kind, how in types.items())}")


@lab.command()
@name_option
def down(name: str) -> None:
    """Stop the lab, and remove everything that it created."""
    _lab().find(name).down()


def _contradictions(settings: LabSettings) -> tuple[str, ...]:
    """Check the lab's rules and proxy flags for contradictions; rejects invalid proxy flags."""
    from istio_init.cli.agreement import parse_words, read_rules
    from istio_init.cli.bootstrap_options import BootstrapRequest
    from istio_init.cli.proxy import proxy
    from istio_init.kubernetes.agreement import Pair, contradictions

    pod = mesh_pods(settings)[0]
    given = parse_words(proxy, proxy_arguments(settings, pod)[1:], "--proxy")
    wanted = BootstrapRequest.take(given.pop("role"), given, proxy_environment(settings, pod))
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
