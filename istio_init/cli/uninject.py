"""`istio-init uninject`: remove what `inject` added to manifests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.cli.command import Subcommand
from istio_init.cli.manifests import MANIFEST_OPTIONS, change_manifests
from istio_init.core.log import log_options
from istio_init.kubernetes.inject import uninject_document

if TYPE_CHECKING:
    from istio_init.cli.command import Given
    from istio_init.core.log import Log

HELP = """Remove the init container and the proxy from the pods of Kubernetes manifests.

Removes what the annotation sidecar.istio.io/status lists, which restores the original manifest byte for byte.
"""

EPILOG = """\b
Examples:
  istio-init uninject -f injected.yaml
  istio-init uninject --in-place manifests/
"""


def uninject(given: Given, log: Log) -> None:
    """Change manifests."""
    change_manifests(given, log, uninject_document)


COMMAND = Subcommand("uninject", HELP, EPILOG, (*MANIFEST_OPTIONS, *log_options()), uninject)
