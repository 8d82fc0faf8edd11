"""`istio-init uninject`: remove what `inject` added to manifests."""

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
    """Remove the init container and the proxy from the pods of Kubernetes manifests.

    Removes what the annotation sidecar.istio.io/status lists, which restores the original manifest byte for byte.
    """
    log = take_log(options)
    change_manifests(options, log, uninject_document)
