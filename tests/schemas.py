"""Kubernetes' own schemas, each read once: the library reads megabytes for every document that it validates."""

from __future__ import annotations

from functools import cache
from typing import Any

import kubernetes_validate
from kubernetes_validate import utils

LATEST: str = kubernetes_validate.latest_version()

utils.schema_contents = cache(utils.schema_contents)


def validate(document: dict[str, Any], version: str = LATEST) -> None:
    """Validate a document against the strict schema of a version of Kubernetes, and those of a list one by one."""
    if document["kind"] == "List":
        for item in document["items"]:
            validate(item, version)
    else:
        kubernetes_validate.validate(document, version, strict=True)
