"""What the Envoy of a pod tells, whichever engine runs the pod. Each `execute` runs a program in the proxy's container."""

from __future__ import annotations

import json
import re
from typing import Protocol

from tests.docker.engine import until

READY = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:15020/healthz/ready', timeout=2).status)"
STATS = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:15000/stats?format=json').read().decode())"
INBOUND = r"inbound\|9080\|\|[a-z.]+"
REVIEWS = r"outbound\|9080\|\|reviews\.default\.svc\.cluster\.local"


class Execute(Protocol):
    """Runs a program, and gives its output."""

    def __call__(self, *command: str, check: bool = True) -> str: ...


def wait_until_ready(execute: Execute, pod: str) -> None:
    until(f"pod {pod} is ready", lambda: execute("python3", "-c", READY, check=False).strip() == "200")


def requests(execute: Execute, cluster: str) -> int:
    """Count the requests that an Envoy has passed on to a cluster."""
    stats = json.loads(execute("python3", "-c", STATS))["stats"]
    return sum(
        one.get("value", 0)
        for one in stats
        if re.fullmatch(rf"cluster\.{cluster}(?<!external)\.upstream_rq_completed", one.get("name", ""))
    )
