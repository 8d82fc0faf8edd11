"""A webhook whose injector does what a test wants: `python -m tests.webhook.stand_in CERTIFICATE KEY`."""

from __future__ import annotations

import copy
import sys
from typing import TYPE_CHECKING

from istio_init.core.errors import InvalidInput
from istio_init.kubernetes.inject import Injection
from istio_init.kubernetes.webhook.log import Logger
from istio_init.kubernetes.webhook.server import Listeners, run

if TYPE_CHECKING:
    from istio_init.kubernetes.inject import Workload
    from istio_init.kubernetes.webhook.review import Json


def inject(template: Json, workload: Workload, where: str) -> Injection:
    """Add a container that tells what was asked; an annotation `test` brings about the rest."""
    match template["metadata"].get("annotations", {}).get("test"):
        case "fault":
            raise KeyError("a fault of ours")
        case "deep":
            raise RecursionError("too deep")
        case "denied":
            raise InvalidInput(f"{where}: annotation test", "'denied' is not allowed", "anything else")
        case "alone":
            return Injection(None, "not injected: on request")
        case _:
            pod = copy.deepcopy(template)
            pod["spec"]["containers"].append({"name": "stand-in", "image": f"{workload.namespace}/{workload.name}"})
            return Injection(pod, "injected")


def log(message: str) -> None:
    print(message, file=sys.stderr, flush=True)  # noqa: T201 - the log


if __name__ == "__main__":
    run(inject, (sys.argv[1], sys.argv[2]), Listeners("127.0.0.1", 0, 0), Logger(log, log, log))
