"""The options of `istio-init inject --webhook`, and its start."""

from __future__ import annotations

import gc
import os
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, NamedTuple

from istio_init.core.errors import InvalidInput, Unsupported
from istio_init.core.log import Level, Log
from istio_init.core.option import Kind, Option, read_values, whole_number
from istio_init.rules.values import PORT_MAX

if TYPE_CHECKING:
    from collections.abc import Mapping

    from istio_init.kubernetes.webhook.review import Injector

PORT = 15017  # the port of Istio's own webhook
STATUS_PORT = 15014  # and of its metrics


def _file(text: str, where: str) -> str:
    if not os.path.isfile(text):
        raise InvalidInput(where, f"{text!r} is not a file", "the path of a file in PEM")
    return text


def _address(text: str, where: str) -> str:
    try:
        if text:  # empty for all addresses
            ip_address(text)
    except ValueError:
        raise InvalidInput(where, f"{text!r} is not an IP address", "an IPv4 or IPv6 address of this host") from None
    return text


WEBHOOK_OPTIONS = (
    Option("webhook", ("--webhook",), kind=Kind.FLAG,
           help="Instead of reading manifests, serve AdmissionReviews over HTTPS at /inject, until SIGTERM."),
    Option("tls_cert", ("--tls-cert",), metavar="FILE", parse=_file, is_path=True,
           help="The webhook's certificate, in PEM; reloaded on change."),
    Option("tls_key", ("--tls-key",), metavar="FILE", parse=_file, is_path=True,
           help="Its unencrypted key, in PEM; reloaded on change."),
    Option("webhook_address", ("--webhook-address",), metavar="ADDRESS", parse=_address,
           help="Listen on this address only. Default: all addresses."),
    Option("webhook_port", ("--webhook-port",), metavar="PORT", parse=whole_number(0, PORT_MAX), default=str(PORT),
           help=f"HTTPS port; 0 picks a free one. Default: {PORT}."),
    Option("webhook_status_port", ("--webhook-status-port",), metavar="PORT", parse=whole_number(0, PORT_MAX),
           default=str(STATUS_PORT),
           help="HTTP port for /healthz/ready, /healthz/live and /metrics (Prometheus); 0 picks a free one. "
           f"Default: {STATUS_PORT}."),
)  # fmt: skip


class WebhookOptions(NamedTuple):
    """What `WEBHOOK_OPTIONS` say.

    Attributes:
        enabled: whether to serve the webhook.
        files: the certificate and its key; None if not given.
        address: the address to listen on, or empty for all.
        port: the port for reviews.
        status_port: the port for health checks and metrics.
    """

    enabled: bool
    files: tuple[str | None, str | None]
    address: str
    port: int
    status_port: int

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> WebhookOptions:
        """Read these options.

        Raises:
            InvalidInput: a value is not allowed, the webhook lacks certificate or key, or another option lacks the webhook.
        """
        values = read_values(WEBHOOK_OPTIONS, given)
        found = cls(
            values["webhook"],
            (values["tls_cert"], values["tls_key"]),
            values["webhook_address"] or "",
            values["webhook_port"],
            values["webhook_status_port"],
        )
        if found.enabled and None in found.files:
            problem = "API servers require HTTPS, but the certificate or its key is missing"
            raise InvalidInput("--webhook", problem, "with --tls-cert FILE and --tls-key FILE")
        if not found.enabled:
            idle = [option.where for option in WEBHOOK_OPTIONS if option.name in given]
            if idle:
                raise InvalidInput(", ".join(idle), "applies only with --webhook", "with --webhook")
        return found


def serve_webhook(options: WebhookOptions, inject: Injector, log: Log) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        options: the command line's options, with both files.
        inject: adds the sidecar to a pod.
        log: the log.

    Raises:
        InvalidInput: the certificate is unusable, or cannot listen on a port.
        Unsupported: the extra `webhook` is not installed.
        OSError: the certificate's directory cannot be watched.
    """
    try:
        from istio_init.kubernetes.webhook.log import Logger
        from istio_init.kubernetes.webhook.server import Listeners, run
    except ImportError as error:
        raise Unsupported(f"--webhook needs the module {error.name}: install istio-init[webhook]") from None
    gc.freeze()  # keeps collections short: modules never become garbage
    gc.enable()  # disabled at startup for the short-lived commands
    certificate, key = options.files
    logger = Logger(log.debug, partial(log.write, Level.INFO), partial(log.write, Level.WARNING))
    run(inject, (certificate or "", key or ""), Listeners(options.address, options.port, options.status_port), logger)
