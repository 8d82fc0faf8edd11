"""Bootstrap files, byte for byte, in both flavours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.sidecar.bootstrap import FLAVOURS, render_bootstrap
from tests.golden.files import assert_golden, names
from tests.proxies import PROXIES, Proxy
from tests.sweeps import sweep

if TYPE_CHECKING:
    import pytest


@sweep("flavour", FLAVOURS)
@sweep("proxy", PROXIES, ids=lambda proxy: proxy.name)
def test_a_bootstrap_file_is_as_reviewed(proxy: Proxy, flavour: str, request: pytest.FixtureRequest) -> None:
    assert_golden(f"bootstrap/{proxy.name}.{flavour}.json", render_bootstrap(proxy.settings(), flavour), request)


def test_no_bootstrap_file_is_left_over() -> None:
    wanted = {f"bootstrap/{proxy.name}.{flavour}.json" for proxy in PROXIES for flavour in FLAVOURS}
    assert names("bootstrap") == wanted
