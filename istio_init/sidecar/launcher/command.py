"""Envoy's command line. Pure.

Sources: `envoy --help`; for v2, Istio 1.0.5, `pilot/pkg/proxy/envoy`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.sidecar.bootstrap.durations import SECOND

if TYPE_CHECKING:
    from istio_init.sidecar.bootstrap.settings import ProxySettings

MAX_OBJECT_NAME = 189  # characters; Istio 1.0's names of clusters are longer than Envoy's limit was in those days


def bootstrap_name(epoch: int) -> str:
    """Name the bootstrap file of an epoch, in the directory of `--configPath`."""
    return f"envoy-rev{epoch}.json"


def envoy_command(settings: ProxySettings, flavour: str, file: str, epoch: int) -> tuple[str, ...]:
    """Give the program and arguments of one epoch of Envoy.

    Args:
        settings: the proxy's.
        flavour: `v3`, or `v2` for an Envoy of Istio 1.0.
        file: the bootstrap file.
        epoch: 0 for the first Envoy, and one more for each that takes over from a running one.
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
        *(_of_old_envoys(settings) if flavour == "v2" else ()),
    )


def _of_old_envoys(settings: ProxySettings) -> tuple[str, ...]:
    zone = ("--service-zone", settings.node.zone) if settings.node.zone else ()
    return ("--max-obj-name-len", str(MAX_OBJECT_NAME), "--allow-unknown-fields", "--v2-config-only", *zone)
