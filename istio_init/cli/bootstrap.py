"""`istio-init bootstrap`: print Envoy's bootstrap file."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from istio_init.cli.agreement import AGREEMENT_OPTIONS, CheckedPod, require_agreement
from istio_init.cli.bootstrap_options import VARIABLES, BootstrapRequest
from istio_init.cli.command import Subcommand, print_text
from istio_init.core import runner
from istio_init.core.errors import CommandError, InvalidInput
from istio_init.core.files import write_text
from istio_init.core.log import Level
from istio_init.core.option import Kind, Option, read_values
from istio_init.sidecar.bootstrap import PROXY_OPTIONS

if TYPE_CHECKING:
    from istio_init.cli.command import Given
    from istio_init.core.log import Log

VALIDATION_TIMEOUT = 60.0  # seconds

EPILOG = f"""\b
Examples:
  istio-init bootstrap --ip 10.1.1.1 --serviceCluster productpage --discoveryAddress istio-pilot.istio-system:15007
  istio-init bootstrap --ip 10.1.1.1 --bootstrap-override mine.yaml --check -o envoy.json
  istio-init bootstrap --ip 10.1.1.1 --interception "-p 15001 -u 1337 -m REDIRECT -i '*' -b 9080"
  istio-init bootstrap --manifest pod.yaml -o /dev/null

{VARIABLES}"""


HELP = "Print the bootstrap file of a pod's Envoy: its identity, admin port and control plane."

OUTPUT_OPTIONS = (
    Option(
        "output", ("-o", "--output"), metavar="FILE", is_path=True,
           help="Write to this file instead of standard output."
    ),
    Option("check", ("--check",), kind=Kind.FLAG, help="Validate the result with the Envoy on the PATH, if there is one."),
)  # fmt: skip


def bootstrap(given: Given, log: Log) -> int | None:
    """Print or write the file, unless it and the pod's rules contradict each other."""
    pod = CheckedPod.of(given)
    request = BootstrapRequest.of(pod.given, pod.environ)
    text = request.text()
    if not require_agreement(pod, request.settings, text, log):
        return InvalidInput.exit_code
    values = read_values(OUTPUT_OPTIONS, given)
    if values["check"]:
        _validate(text, Path(request.settings.custom_config_file).suffix or ".json", log)
    if values["output"] is None:
        print_text(text)
    else:
        write_text(values["output"], text, "--output")
    return None


def _validate(text: str, suffix: str, log: Log) -> None:
    # Envoy distinguishes JSON from YAML by the file's suffix.
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=suffix) as file:
        file.write(text)
        file.flush()
        command = runner.Command(("envoy", "--mode", "validate", "--log-level", "error", "-c", file.name))
        (result,) = runner.run_all([command], VALIDATION_TIMEOUT, log.debug)
    if result.missing:
        log.write(Level.WARNING, "the bootstrap was not validated: there is no envoy on the PATH")
    elif result.status != 0:
        raise CommandError(result.argv, result.status, result.stderr, "fix what Envoy's message reports")


COMMAND = Subcommand("bootstrap", HELP, EPILOG, (*PROXY_OPTIONS, *AGREEMENT_OPTIONS, *OUTPUT_OPTIONS), bootstrap)
