"""`istio-init proxy`: the entry point of the sidecar's container."""

from __future__ import annotations

import gc
import os
import shutil
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from istio_init.cli.bootstrap_options import VARIABLES, BootstrapRequest
from istio_init.cli.command import Subcommand
from istio_init.core.durations import SECOND
from istio_init.core.errors import InvalidInput
from istio_init.core.files import make_private_directory, write_text
from istio_init.core.log import Level
from istio_init.core.processes import RealProcesses, block_signals, wake_up
from istio_init.core.watch import digest, watch
from istio_init.sidecar.bootstrap import PROXY_OPTIONS
from istio_init.sidecar.bootstrap.common import CERTIFICATES
from istio_init.sidecar.launcher.admin import Admin
from istio_init.sidecar.launcher.command import bootstrap_name, envoy_command
from istio_init.sidecar.launcher.launch import LaunchConfig, Launcher
from istio_init.sidecar.launcher.readiness import Readiness, serve

if TYPE_CHECKING:
    from istio_init.cli.command import Given
    from istio_init.core.log import Log

EPILOG = f"""\b
Example, with the arguments of an Istio 1.0 pod:
  istio-init proxy sidecar --configPath /etc/istio/proxy --binaryPath /usr/local/bin/envoy
    --serviceCluster productpage --drainDuration 45s --parentShutdownDuration 1m0s
    --discoveryAddress istio-pilot.istio-system:15007 --connectTimeout 10s --proxyAdminPort 15000

\b
SIGTERM and SIGINT start a graceful drain: Envoy stops once no connection is left, after --drainDuration at the latest;
a second signal stops it immediately. The exit status is Envoy's.

{VARIABLES}"""


HELP = "Write the bootstrap file of a pod's Envoy, then run and supervise Envoy."


def proxy(given: Given, log: Log) -> int:
    """Run and supervise Envoy, and return its exit status."""
    gc.enable()  # disabled at startup for the short-lived commands
    request = BootstrapRequest.of(given, os.environ)
    settings = request.settings
    if shutil.which(settings.binary_path) is None:
        problem = f"{settings.binary_path!r} is not an executable program"
        raise InvalidInput("--binaryPath", problem, "the path of an Envoy executable")
    text = request.text()  # fails on an invalid user file before anything is written
    admin = Admin(settings.admin_port)
    config = LaunchConfig(
        prepare=partial(_prepare, request, text),
        admin=admin,
        drain=settings.drain / SECOND,
        certificate=partial(digest, CERTIFICATES),
        info=partial(log.write, Level.INFO),
        warn=partial(log.write, Level.WARNING),
    )
    with ExitStack() as stack:
        stack.enter_context(block_signals())
        readiness = Readiness(admin, settings.node.ip, settings.application_ports)
        stack.enter_context(serve(readiness, settings.status_port))
        if not settings.custom_config_file:
            make_private_directory(settings.config_path, "--configPath")
        _watch_certificates(stack, log)
        return Launcher(config, RealProcesses()).run()


def _prepare(request: BootstrapRequest, text: str, epoch: int) -> tuple[str, ...]:
    """Write an epoch's bootstrap file, unless a custom file is used, and return Envoy's command line."""
    settings = request.settings
    file = settings.custom_config_file or str(Path(settings.config_path, bootstrap_name(epoch)))
    if not settings.custom_config_file:
        write_text(file, text, "--configPath")
    return envoy_command(settings, request.flavour, file, epoch)


def _watch_certificates(stack: ExitStack, log: Log) -> None:
    if not os.path.isdir(CERTIFICATES):
        log.write(Level.DEBUG, f"{CERTIFICATES} does not exist; not watching for certificate changes")
        return
    try:
        stack.enter_context(watch(CERTIFICATES, wake_up))
    except OSError as error:
        log.write(Level.WARNING, f"cannot watch {CERTIFICATES}, so certificate changes will not be detected: {error}")


COMMAND = Subcommand("proxy", HELP, EPILOG, PROXY_OPTIONS, proxy)
