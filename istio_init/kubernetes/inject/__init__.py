"""Adds the init container and the proxy to pods in Kubernetes manifests, and removes them again. Pure."""

from istio_init.kubernetes.inject.documents import inject_document, uninject_document
from istio_init.kubernetes.inject.pod import Workload
from istio_init.kubernetes.inject.settings import InjectSettings
from istio_init.kubernetes.inject.template import Injection, inject_template, uninject_template

__all__ = [
    "InjectSettings",
    "Injection",
    "Workload",
    "inject_document",
    "inject_template",
    "uninject_document",
    "uninject_template",
]
