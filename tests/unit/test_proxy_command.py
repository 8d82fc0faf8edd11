"""Envoy's command line."""

from __future__ import annotations

import pytest

from istio_init.sidecar.launcher.command import bootstrap_name, envoy_command
from tests.proxies import Proxy

NODE = "sidecar~10.1.1.1~productpage-v1-1.default~default.svc.cluster.local"


def arguments(flavour: str = "v3", epoch: int = 0, **flags: str) -> tuple[str, ...]:
    return envoy_command(Proxy("", flags).settings(), flavour, "/etc/istio/proxy/envoy-rev0.json", epoch)


def test_the_pods_envoy_is_told_who_it_is_and_how_long_it_may_drain() -> None:
    assert arguments() == (
        "/usr/local/bin/envoy",
        *("-c", "/etc/istio/proxy/envoy-rev0.json"),
        *("--restart-epoch", "0"),
        *("--drain-time-s", "45"),
        *("--parent-shutdown-time-s", "60"),
        *("--service-cluster", "productpage"),
        *("--service-node", NODE),
        *("-l", "warn"),
    )


def test_each_epoch_has_its_number_and_its_file() -> None:
    assert [bootstrap_name(epoch) for epoch in (0, 1, 12)] == ["envoy-rev0.json", "envoy-rev1.json", "envoy-rev12.json"]
    made = arguments(epoch=12)
    assert made[made.index("--restart-epoch") + 1] == "12"


@pytest.mark.parametrize("flavour", ["v3", "v2"])
def test_concurrency_is_envoys_own_choice_unless_it_was_asked_for(flavour: str) -> None:
    assert "--concurrency" not in arguments(flavour)
    asked = arguments(flavour, concurrency="3")
    assert asked[asked.index("--concurrency") + 1] == "3"


def test_flags_of_the_proxy_reach_envoy() -> None:
    made = arguments(binaryPath="/opt/envoy", proxyLogLevel="debug", serviceCluster="reviews", parentShutdownDuration="1h")
    assert made[0] == "/opt/envoy"
    assert made[made.index("-l") + 1] == "debug"
    assert made[made.index("--service-cluster") + 1] == "reviews"
    assert made[made.index("--parent-shutdown-time-s") + 1] == "3600"


def test_an_envoy_of_istio_1_0_is_told_what_todays_would_refuse() -> None:
    assert arguments("v2") == (*arguments(), "--max-obj-name-len", "189", "--allow-unknown-fields", "--v2-config-only")


def test_only_an_envoy_of_istio_1_0_takes_its_zone_from_its_arguments() -> None:
    assert arguments("v2", availabilityZone="zone-1")[-2:] == ("--service-zone", "zone-1")
    assert arguments("v3", availabilityZone="zone-1") == arguments("v3")
