"""`istio-init uninject`: take out of manifests what `inject` added."""

from __future__ import annotations

from typing import Any

import click

from istio_init.cli.manifests import change_manifests, manifest_options
from istio_init.cli.options import log_options, take_log
from istio_init.kubernetes.inject import uninject_document

EPILOG = """\b
Examples:
  istio-init uninject -f injected.yaml
  istio-init uninject --in-place manifests/
"""


@click.command(epilog=EPILOG)
@manifest_options
@log_options
def uninject(**options: Any) -> None:
    """Take the init container and the proxy out of the pods of Kubernetes manifests.

    What is taken out is what the annotation sidecar.istio.io/status names. The manifest is again what it was.
    """
    log = take_log(options)
    change_manifests(options, log, uninject_document)
