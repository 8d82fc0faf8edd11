"""`istio-init proxy`: the sidecar's container, from the bootstrap file to Envoy's end."""

from __future__ import annotations

import gc
import os
import shutil
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import click

from istio_init.cli.bootstrap_options import VARIABLES, Wanted, bootstrap_options
from istio_init.cli.options import log_options, take_log
from istio_init.core.errors import InvalidInput
from istio_init.core.files import make_private_directory, write_text
from istio_init.core.log import Level, Log
from istio_init.core.processes import RealProcesses, notice, signals_awaited
from istio_init.core.watch import digest, watch
from istio_init.sidecar.bootstrap.common import CERTIFICATES
from istio_init.sidecar.bootstrap.durations import SECOND
from istio_init.sidecar.launcher.admin import Admin
from istio_init.sidecar.launcher.command import bootstrap_name, envoy_command
from istio_init.sidecar.launcher.launch import Launcher, Plan
from istio_init.sidecar.launcher.readiness import Readiness, serve

EPILOG = f"""\b
Example, as a pod of Istio 1.0 has it:
  istio-init proxy sidecar --configPath /etc/istio/proxy --binaryPath /usr/local/bin/envoy
    --serviceCluster productpage --drainDuration 45s --parentShutdownDuration 1m0s
    --discoveryAddress istio-pilot.istio-system:15007 --connectTimeout 10s --proxyAdminPort 15000

\b
SIGTERM and SIGINT drain: clients are told to go elsewhere, and Envoy ends when no connection is left, at most
--drainDuration later; a second signal ends it at once. The exit status is Envoy's.

{VARIABLES}"""


@click.command(epilog=EPILOG)
@bootstrap_options
@log_options
def proxy(role: str, **options: Any) -> None:
    """Write the bootstrap file of a pod's Envoy, run Envoy with it, and watch over it."""
    gc.enable()  # the program is started without, for it seldom lives long
    log = take_log(options)
    wanted = Wanted.take(role, options, os.environ)
    settings = wanted.settings
    if shutil.which(settings.binary_path) is None:
        problem = f"{settings.binary_path!r} is no program that can be run"
        raise InvalidInput("--binaryPath", problem, "the path of an Envoy")
    text = wanted.text()  # a bad file of the user's ends the program here, before anything is written
    admin = Admin(settings.admin_port)
    plan = Plan(
        prepare=partial(_prepare, wanted, text),
        admin=admin,
        drain=settings.drain / SECOND,
        certificate=partial(digest, CERTIFICATES),
        note=partial(log.write, Level.INFO),
        warn=partial(log.write, Level.WARNING),
    )
    with ExitStack() as stack:
        stack.enter_context(signals_awaited())
        readiness = Readiness(admin, settings.node.ip, settings.application_ports)
        stack.enter_context(serve(readiness, settings.status_port))
        if not settings.custom_config_file:
            make_private_directory(settings.config_path, "--configPath")
        _watch_certificates(stack, log)
        status = Launcher(plan, RealProcesses()).run()
    click.get_current_context().exit(status)


def _prepare(wanted: Wanted, text: str, epoch: int) -> tuple[str, ...]:
    """Write the file of an epoch, and give the command line; a user's own file is used where it is."""
    settings = wanted.settings
    file = settings.custom_config_file or str(Path(settings.config_path, bootstrap_name(epoch)))
    if not settings.custom_config_file:
        write_text(file, text, "--configPath")
    return envoy_command(settings, wanted.flavour, file, epoch)


def _watch_certificates(stack: ExitStack, log: Log) -> None:
    if not os.path.isdir(CERTIFICATES):
        log.write(Level.DEBUG, f"there is no {CERTIFICATES}, so no certificate is watched")
        return
    try:
        stack.enter_context(watch(CERTIFICATES, notice))
    except OSError as error:
        log.write(Level.WARNING, f"a new certificate will not be noticed: {CERTIFICATES} cannot be watched: {error}")
