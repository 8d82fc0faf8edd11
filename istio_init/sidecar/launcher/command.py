"""Envoy's command line. Pure.

Sources: `envoy --help`; for v2, Istio 1.0.5, `pilot/pkg/proxy/envoy`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.core.durations import SECOND

if TYPE_CHECKING:
    from istio_init.sidecar.bootstrap.settings import ProxySettings

MAX_OBJECT_NAME = 189  # characters; Istio 1.0's cluster names exceed the default limit of Envoys of that time


def bootstrap_name(epoch: int) -> str:
    """Return the name of an epoch's bootstrap file, in the directory of `--configPath`."""
    return f"envoy-rev{epoch}.json"


def envoy_command(settings: ProxySettings, flavour: str, file: str, epoch: int) -> tuple[str, ...]:
    """Return the command line of one Envoy epoch.

    Args:
        settings: the proxy's settings.
        flavour: `v3`, or `v2` for Istio 1.0's Envoy.
        file: the bootstrap file.
        epoch: the hot restart epoch, 0 for the first Envoy.
    """
    return (
        settings.binary_path,
        *("-c", file),
        *("--restart-epoch", str(epoch)),
        *("--drain-time-s", str(settings.drain // SECOND)),
        *("--parent-shutdown-time-s", str(settings.parent_shutdown // SECOND)),
        *("--service-cluster", settings.node.cluster),
        *("--service-node", settings.node.name),
        *("-l", settings.log_level),
        *(("--concurrency", str(settings.concurrency)) if settings.concurrency else ()),
        *(_v2_flags(settings) if flavour == "v2" else ()),
    )


def _v2_flags(settings: ProxySettings) -> tuple[str, ...]:
    zone = ("--service-zone", settings.node.zone) if settings.node.zone else ()
    return ("--max-obj-name-len", str(MAX_OBJECT_NAME), "--allow-unknown-fields", "--v2-config-only", *zone)
