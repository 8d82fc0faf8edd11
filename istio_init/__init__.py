"""istio-init: the init container of a service mesh's pod.

The Python interface, in five lines::

    from istio_init import Settings, build_plan, render
    from istio_init.rules.kernel.engine import open_engine

    plan = build_plan(Settings.of(proxy_uids="1337", inbound_ports="9080", service_cidrs="*"))
    print(render(plan, "table"))
    open_engine().apply(plan)
"""

from istio_init.core.light import TYPE_CHECKING

if TYPE_CHECKING:
    from istio_init.rules.layouts import build_plan
    from istio_init.rules.render import render
    from istio_init.rules.settings import Settings

__version__ = "0.1.0"
__all__ = ["Settings", "__version__", "build_plan", "render"]
_HOMES = {"Settings": "settings", "build_plan": "layouts", "render": "render"}


def __getattr__(name: str) -> object:
    """Import what a program asks for (PEP 562): the command line, for which each pod start waits, asks for no such name."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"istio_init.rules.{_HOMES[name]}"), name)
