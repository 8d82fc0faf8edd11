"""`istio-init bootstrap`: print Envoy's bootstrap file."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

from istio_init.cli.agreement import Pod, agreement_options, require_agreement
from istio_init.cli.bootstrap_options import VARIABLES, BootstrapRequest, bootstrap_options
from istio_init.cli.options import log_options, take_log
from istio_init.core.errors import CommandError
from istio_init.core.files import write_text
from istio_init.core.log import Level, Log
from istio_init.core.runner import Command, run_all

VALIDATION_TIMEOUT = 60.0  # seconds

EPILOG = f"""\b
Examples:
  istio-init bootstrap --ip 10.1.1.1 --serviceCluster productpage --discoveryAddress istio-pilot.istio-system:15007
  istio-init bootstrap --ip 10.1.1.1 --bootstrap-override mine.yaml --check -o envoy.json
  istio-init bootstrap --ip 10.1.1.1 --interception "-p 15001 -u 1337 -m REDIRECT -i '*' -b 9080"
  istio-init bootstrap --manifest pod.yaml -o /dev/null

{VARIABLES}"""


@click.command(epilog=EPILOG)
@bootstrap_options
@agreement_options
@click.option("-o", "--output", metavar="FILE", help="Write to this file instead of standard output.")
@click.option("--check", is_flag=True, help="Validate the result with the Envoy on the PATH, if there is one.")
@log_options
def bootstrap(role: str, **options: Any) -> None:
    """Print the bootstrap file of a pod's Envoy: its identity, admin port and control plane."""
    log = take_log(options)
    pod = Pod.take(role, options)
    request = BootstrapRequest.take(pod.role, pod.options, pod.environ)
    text = request.text()
    require_agreement(pod, request.settings, text, log)
    if options["check"]:
        _validate(text, Path(request.settings.custom_config_file).suffix or ".json", log)
    if options["output"] is None:
        click.echo(text, nl=False)
    else:
        write_text(options["output"], text, "--output")


def _validate(text: str, suffix: str, log: Log) -> None:
    # Envoy distinguishes JSON from YAML by the file's suffix.
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=suffix) as file:
        file.write(text)
        file.flush()
        command = Command(("envoy", "--mode", "validate", "--log-level", "error", "-c", file.name))
        (result,) = run_all([command], VALIDATION_TIMEOUT, log.debug)
    if result.missing:
        log.write(Level.WARNING, "the bootstrap was not validated: there is no envoy on the PATH")
    elif result.status != 0:
        raise CommandError(result.argv, result.status, result.stderr, "fix what Envoy's message reports")
