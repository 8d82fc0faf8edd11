"""istio-init: the init container of a service mesh's pod.

The Python interface, in five lines::

    from istio_init import Settings, build_plan, render
    from istio_init.rules.kernel.engine import open_engine

    plan = build_plan(Settings.of(proxy_uids="1337", inbound_ports="9080", service_cidrs="*"))
    print(render(plan, "table"))
    open_engine().apply(plan)
"""

from istio_init.rules.layouts import build_plan
from istio_init.rules.render import render
from istio_init.rules.settings import Settings

__version__ = "0.1.0"
__all__ = ["Settings", "__version__", "build_plan", "render"]
