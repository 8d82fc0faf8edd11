"""`istio-init inject`: add the init container and the proxy to pods."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from istio_init.cli.command import Subcommand
from istio_init.cli.manifests import MANIFEST_OPTIONS, change_manifests
from istio_init.cli.webhook import WEBHOOK_OPTIONS, WebhookOptions, serve_webhook
from istio_init.core.errors import InvalidInput
from istio_init.core.log import log_options
from istio_init.core.option import Kind, Option, read_values
from istio_init.kubernetes.inject import Injection, InjectSettings, inject_document, inject_template
from istio_init.kubernetes.inject.settings import INJECT, PROXY_IMAGE_ANNOTATION, STATUS_PORT, TRAFFIC
from istio_init.rules.layout import NAMES as LAYOUT_NAMES

if TYPE_CHECKING:
    from istio_init.cli.command import Given
    from istio_init.core.log import Log
    from istio_init.kubernetes.inject import Workload
    from istio_init.kubernetes.webhook.review import Injector, Json

DEFAULTS = InjectSettings()
EPILOG = f"""\b
Examples:
  istio-init inject -f deployment.yaml | kubectl apply -f -
  istio-init inject --in-place --layout current --native-sidecar manifests/
  istio-init uninject -f injected.yaml
  istio-init inject --webhook --tls-cert tls.crt --tls-key tls.key

\b
A pod's annotations take precedence over the defaults; those of the rules have the same values as the flags:
  {(chr(10) + "  ").join((INJECT, *TRAFFIC, STATUS_PORT, PROXY_IMAGE_ANNOTATION))}
"""


INJECT_OPTIONS = (
    Option("layout", ("--layout",), metavar="LAYOUT", choices=LAYOUT_NAMES, default=DEFAULTS.layout,
           help="Default: istio-1.0."),
    Option("init_image", ("--init-image",), metavar="IMAGE", default=DEFAULTS.init_image,
           help=f"Image of the init container. Default: {DEFAULTS.init_image}."),
    Option("proxy_image", ("--proxy-image",), metavar="IMAGE", default=DEFAULTS.proxy_image,
           help=f"Image of the proxy. Default: {DEFAULTS.proxy_image}."),
    Option("native_sidecar", ("--native-sidecar",), kind=Kind.FLAG,
           help="Add the proxy as a native sidecar (an init container with restartPolicy: Always); layout current."),
    Option("discovery_address", ("--discoveryAddress",), metavar="HOST:PORT", default="",
           help="Control plane. Default: istio-pilot.istio-system:15007; current: istiod.istio-system.svc:15010."),
    Option("zipkin_address", ("--zipkinAddress",), metavar="HOST:PORT",
           help="Zipkin collector for traces; empty for none. Default: zipkin.istio-system:9411; current: none."),
    Option("unprivileged", ("--unprivileged",), kind=Kind.FLAG,
           help="Layout istio-1.0: give the init container only NET_ADMIN and NET_RAW instead of running it "
           "privileged, as Istio 1.0 does. Always on with layout current."),
)  # fmt: skip

HELP = """Add the init container and the proxy to the pods of Kubernetes manifests.

Accepts Pod, Deployment, StatefulSet, DaemonSet, ReplicaSet, ReplicationController, Job, CronJob, or a List of them,
in YAML or JSON; other objects pass through. Apart from the additions, the text does not change. Pods that are
already injected, use the host network, or opt out are not injected; the reason is logged to standard error.

With --webhook, pods come from an API server instead, as they are created.
"""


def inject(given: Given, log: Log) -> None:
    """Change manifests, or serve the webhook."""
    webhook = WebhookOptions.of(given)
    settings = InjectSettings(**read_values(INJECT_OPTIONS, given)).checked()
    if webhook.enabled:
        if any(read_values(MANIFEST_OPTIONS, given).values()):
            raise InvalidInput("--webhook", "does not read or write manifests", "without files, --output and --in-place")
        serve_webhook(webhook, _injector(settings), log)
        return
    change_manifests(given, log, partial(_inject, settings))


def _inject(settings: InjectSettings, document: Any, where: str) -> tuple[Any, tuple[str, ...]]:
    return inject_document(document, settings, where)


def _injector(settings: InjectSettings) -> Injector:
    def inject_pod(template: Json, workload: Workload, where: str) -> Injection:
        return inject_template(template, settings, workload, where)

    return inject_pod


COMMAND = Subcommand("inject", HELP, EPILOG, (*MANIFEST_OPTIONS, *INJECT_OPTIONS, *WEBHOOK_OPTIONS, *log_options()), inject)
