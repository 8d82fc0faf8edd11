"""The options of `istio-init inject --webhook`, and its start."""

from __future__ import annotations

import gc
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from istio_init.cli.options import Function, decorate
from istio_init.core.errors import InvalidInput, Unsupported
from istio_init.core.log import Level, Log

if TYPE_CHECKING:
    from istio_init.kubernetes.webhook.review import Injector

PORT = 15017  # the port of Istio's own webhook
STATUS_PORT = 15014  # and of its metrics
FILE = click.Path(exists=True, dir_okay=False)
PORT_NUMBER = click.IntRange(0, 65535)


class WebhookOptions(NamedTuple):
    """The options of `webhook_options`.

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
    def take(cls, options: dict[str, Any]) -> WebhookOptions:
        """Remove these options from a command's options.

        Raises:
            InvalidInput: the webhook without certificate or key, another option without the webhook, or a bad address.
        """
        found = cls(
            options.pop("webhook"),
            (options.pop("tls_cert"), options.pop("tls_key")),
            options.pop("webhook_address"),
            options.pop("webhook_port"),
            options.pop("webhook_status_port"),
        )
        if found.enabled and None in found.files:
            problem = "API servers require HTTPS, but the certificate or its key is missing"
            raise InvalidInput("--webhook", problem, "with --tls-cert FILE and --tls-key FILE")
        if not found.enabled and found.files != (None, None):
            raise InvalidInput("--tls-cert, --tls-key", "have no effect without --webhook", "with --webhook")
        if not found.enabled and found[2:] != ("", PORT, STATUS_PORT):
            raise InvalidInput(
                "--webhook-address, --webhook-port, --webhook-status-port",
                "have no effect without --webhook",
                "with --webhook",
            )
        if found.address:
            _check_address(found.address)
        return found


def _check_address(text: str) -> None:
    try:
        ip_address(text)
    except ValueError:
        raise InvalidInput(
            "--webhook-address", f"{text!r} is not an IP address", "an IPv4 or IPv6 address of this host"
        ) from None


def webhook_options(command: Function) -> Function:
    """Add the options that `WebhookOptions.take` takes."""
    return decorate(
        command,
        [
            click.option(
                "--webhook",
                is_flag=True,
                help="Instead of reading manifests, serve AdmissionReviews over HTTPS at /inject, until SIGTERM.",
            ),
            click.option(
                "--tls-cert", type=FILE, metavar="FILE", help="The webhook's certificate, in PEM; reloaded on change."
            ),
            click.option("--tls-key", type=FILE, metavar="FILE", help="Its unencrypted key, in PEM; reloaded on change."),
            click.option(
                "--webhook-address",
                default="",
                metavar="ADDRESS",
                help="Listen on this address only. Default: all addresses.",
            ),
            click.option(
                "--webhook-port",
                type=PORT_NUMBER,
                default=PORT,
                metavar="PORT",
                help=f"HTTPS port; 0 picks a free one. Default: {PORT}.",
            ),
            click.option(
                "--webhook-status-port",
                type=PORT_NUMBER,
                default=STATUS_PORT,
                metavar="PORT",
                help="HTTP port for /healthz/ready, /healthz/live and /metrics (Prometheus); 0 picks a free one. "
                f"Default: {STATUS_PORT}.",
            ),
        ],
    )


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
        from istio_init.kubernetes.webhook.server import Listeners, Logger, run
    except ImportError as error:
        raise Unsupported(f"--webhook needs the module {error.name}: install istio-init[webhook]") from None
    gc.freeze()  # keeps collections short: modules never become garbage
    gc.enable()  # disabled at startup for the short-lived commands
    certificate, key = options.files
    logger = Logger(log.debug, partial(log.write, Level.INFO), partial(log.write, Level.WARNING))
    run(inject, (certificate or "", key or ""), Listeners(options.address, options.port, options.status_port), logger)
