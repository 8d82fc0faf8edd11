"""Kubernetes' own schemas, each read once: the library reads megabytes for every document that it validates."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

# With this package, jsonschema makes a parser of IRIs as it is imported: two seconds in each process that collects tests. It
# is for checks of formats, which kubernetes_validate does not ask for.
IRIS = "rfc3987_syntax"
sys.modules[IRIS] = None  # type: ignore[assignment] # as if it were not installed
import kubernetes_validate  # noqa: E402 - see above
from kubernetes_validate import utils  # noqa: E402 - as above

del sys.modules[IRIS]

LATEST: str = kubernetes_validate.latest_version()

utils.schema_contents = cache(utils.schema_contents)


def validate(document: dict[str, Any], version: str = LATEST) -> None:
    """Validate a document against the strict schema of a version of Kubernetes, and those of a list one by one."""
    if document["kind"] == "List":
        for item in document["items"]:
            validate(item, version)
    else:
        kubernetes_validate.validate(document, version, strict=True)
