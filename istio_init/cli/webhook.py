"""`istio-init inject --webhook`: its options, and its start."""

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

PORT = 15017  # where today's Istio serves its own webhook
STATUS_PORT = 15014  # and its metrics
FILE = click.Path(exists=True, dir_okay=False)
PORT_NUMBER = click.IntRange(0, 65535)


class WebhookOptions(NamedTuple):
    """The options of `webhook_options`.

    Attributes:
        wanted: whether the webhook is to be served at all.
        files: the certificate and its key; None where they were not given.
        address: one to listen on, or empty for all.
        port: of the reviews.
        status_port: of readiness and metrics.
    """

    wanted: bool
    files: tuple[str | None, str | None]
    address: str
    port: int
    status_port: int

    @classmethod
    def take(cls, options: dict[str, Any]) -> WebhookOptions:
        """Take them out of a command's options.

        Raises:
            InvalidInput: the webhook without a certificate or a key, another option without the webhook, or no address.
        """
        found = cls(
            options.pop("webhook"),
            (options.pop("tls_cert"), options.pop("tls_key")),
            options.pop("webhook_address"),
            options.pop("webhook_port"),
            options.pop("webhook_status_port"),
        )
        if found.wanted and None in found.files:
            problem = "an API server asks over HTTPS only, and there is no certificate or no key"
            raise InvalidInput("--webhook", problem, "with --tls-cert FILE and --tls-key FILE")
        if not found.wanted and found.files != (None, None):
            raise InvalidInput("--tls-cert, --tls-key", "they are of no use here", "with --webhook")
        if not found.wanted and found[2:] != ("", PORT, STATUS_PORT):
            raise InvalidInput(
                "--webhook-address, --webhook-port, --webhook-status-port", "nothing is served", "with --webhook"
            )
        if found.address:
            _check_address(found.address)
        return found


def _check_address(text: str) -> None:
    try:
        ip_address(text)
    except ValueError:
        raise InvalidInput("--webhook-address", f"{text!r} is no address", "an IPv4 or IPv6 address of this host") from None


def webhook_options(command: Function) -> Function:
    """Add the options that `WebhookOptions.take` takes."""
    return decorate(
        command,
        [
            click.option(
                "--webhook",
                is_flag=True,
                help="Read no manifest, but answer an API server's AdmissionReviews over HTTPS at /inject, until SIGTERM.",
            ),
            click.option(
                "--tls-cert", type=FILE, metavar="FILE", help="The webhook's certificate, PEM; read again when it changes."
            ),
            click.option(
                "--tls-key", type=FILE, metavar="FILE", help="Its key, PEM, without a password; read again when it changes."
            ),
            click.option(
                "--webhook-address",
                default="",
                metavar="ADDRESS",
                help="Listen on this address only. Default: on all of the host's.",
            ),
            click.option(
                "--webhook-port",
                type=PORT_NUMBER,
                default=PORT,
                metavar="PORT",
                help=f"Port of HTTPS; 0 is any. Default: {PORT}.",
            ),
            click.option(
                "--webhook-status-port",
                type=PORT_NUMBER,
                default=STATUS_PORT,
                metavar="PORT",
                help="Port of plain HTTP: /healthz/ready, /healthz/live and /metrics (Prometheus); 0 is any. "
                f"Default: {STATUS_PORT}.",
            ),
        ],
    )


def serve_webhook(options: WebhookOptions, inject: Injector, log: Log) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        options: of the command line, with both files.
        inject: what adds the sidecar to a pod.
        log: where each review and each new certificate is told.

    Raises:
        InvalidInput: the certificate cannot be used, or a port not be listened on.
        Unsupported: the extra `webhook` is not installed.
        OSError: the certificate's directory cannot be watched.
    """
    try:
        from istio_init.kubernetes.webhook.server import Listeners, Voice, run
    except ImportError as error:
        raise Unsupported(f"--webhook needs the module {error.name}: install istio-init[webhook]") from None
    gc.freeze()  # modules never become garbage, and looking through them would make a review wait
    gc.enable()  # the program is started without, for it seldom lives long
    certificate, key = options.files
    voice = Voice(log.debug, partial(log.write, Level.INFO), partial(log.write, Level.WARNING))
    run(inject, (certificate or "", key or ""), Listeners(options.address, options.port, options.status_port), voice)
