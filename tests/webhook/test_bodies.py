"""Bodies that are large, slow, or both do not keep the server from answering others."""

from __future__ import annotations

import asyncio
import time
from io import BytesIO
from typing import TYPE_CHECKING, Any

from aiohttp.test_utils import TestClient, TestServer

from istio_init.kubernetes.webhook import bodies, server
from istio_init.kubernetes.webhook.log import Logger
from tests.webhook import stand_in
from tests.webhook.live import JSON_TYPE, TIMEOUT
from tests.webhook.reviews import bare_pod, encoded, pod, review

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    import pytest

    from istio_init.kubernetes.inject import Injection

    Scene = Callable[[TestClient[Any, Any]], Awaitable[None]]

SMALL = encoded(review(bare_pod("small")))
MAX_IN_FLIGHT = 100_000
SLOW = 1.0  # seconds


def silent(_message: str) -> None:
    pass


def play(scene: Scene, inject: Callable[..., Injection] = stand_in.inject) -> None:
    async def run() -> None:
        webhook = server.Webhook(inject, Logger(silent, silent, silent))
        application = webhook.reviews()
        application.add_subapp("/status", webhook.status())
        async with TestClient(TestServer(application)) as client:
            await scene(client)

    asyncio.run(asyncio.wait_for(run(), TIMEOUT))


async def status_of(client: TestClient[Any, Any], data: object) -> int:
    async with client.post("/inject", data=data, headers=JSON_TYPE) as reply:
        return reply.status


async def stuck(size: int) -> AsyncIterator[bytes]:
    """Send the beginning of a body, and no end."""
    yield b" " * size
    await asyncio.get_running_loop().create_future()


def test_a_body_that_does_not_come_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_TIMEOUT", 0.05)

    async def scene(client: TestClient[Any, Any]) -> None:
        assert await status_of(client, stuck(10)) == 408

    play(scene)


def test_of_bodies_that_are_too_large_together_the_largest_is_refused_and_small_ones_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bodies, "MAX_IN_FLIGHT", MAX_IN_FLIGHT)

    async def scene(client: TestClient[Any, Any]) -> None:
        sizes = (40_000, 30_000, MAX_IN_FLIGHT - 70_000)
        largest, *others = [asyncio.create_task(status_of(client, stuck(size))) for size in sizes]
        await asyncio.sleep(0.3)
        assert not largest.done()
        assert await status_of(client, SMALL) == 200
        assert await largest == 503
        assert not any(one.done() for one in others)
        for one in others:
            one.cancel()

    play(scene)


def test_one_body_alone_may_be_as_large_as_it_is_allowed_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "MAX_IN_FLIGHT", bodies.MAX_BODY)

    async def scene(client: TestClient[Any, Any]) -> None:
        large = encoded(review(pod(large="x" * (bodies.MAX_BODY - 100_000))))
        for _ in range(2):  # what was read before does not count any more
            assert await status_of(client, BytesIO(large)) == 200

    play(scene)


def test_a_large_review_that_takes_long_keeps_nothing_else_waiting() -> None:
    def inject(template: Any, workload: Any, where: str) -> Injection:
        if "large" in template["metadata"].get("annotations", {}):
            time.sleep(SLOW)
        return stand_in.inject(template, workload, where)

    async def scene(client: TestClient[Any, Any]) -> None:
        large = encoded(review(pod(large="x" * server.LARGE_BODY)))
        reviewing = asyncio.create_task(status_of(client, large))
        await asyncio.sleep(SLOW / 4)
        async with client.get(f"/status{server.LIVE}") as reply:
            assert reply.status == 200
        assert await status_of(client, SMALL) == 200
        assert not reviewing.done()
        assert await reviewing == 200

    play(scene, inject)
