"""Loads python-iptables quickly, and patches it to match the installed libxtables."""

from __future__ import annotations

import ctypes
import ctypes.util
import warnings
from functools import cache
from typing import Any

from istio_init.core.errors import Unsupported

# python-iptables looks these up with `ctypes.util.find_library`, which runs ldconfig and gcc for each: a third of a second.
# The dynamic linker finds them by these sonames, unchanged since iptables 1.4.
SONAMES = {"c": "libc.so.6", "ip4tc": "libip4tc.so.2", "ip6tc": "libip6tc.so.2", "xtables": "libxtables.so.12"}

# iptables 1.8.11 added a field `base` to the end of an extension's option (xtables.h: struct xt_option_entry), which
# python-iptables 1.2 does not know: it would read the second option from the end of the first. The only sign of the field
# is this function, added in the same release.
OF_1_8_11 = "xtables_strtoul_base"


@cache
def load() -> Any:
    """Import python-iptables, and return its module `iptc`.

    Raises:
        Unsupported: the package, or a library that it needs, cannot be loaded.
    """
    find_library = ctypes.util.find_library
    ctypes.util.find_library = lambda name: SONAMES.get(name) or find_library(name)
    try:
        with warnings.catch_warnings():
            # Compiling it warns about invalid escape sequences; with -W error, the import would fail.
            warnings.simplefilter("ignore")
            import iptc
    except Exception as error:  # a missing library can surface as any exception
        message = f"python-iptables cannot be used here: {error}; use --backend restore"
        raise Unsupported(message) from error
    finally:
        ctypes.util.find_library = find_library
    fit(iptc.xtables)
    return iptc


def fit(xtables: Any) -> None:
    """Patch the module `iptc.xtables` to match the library that it has loaded."""
    if hasattr(xtables._lib_xtables, OF_1_8_11):  # noqa: SLF001 - there is no public access
        xtables.xtables._option_lookup = find_option  # noqa: SLF001 - as above


def find_option(_: object, options: Any, name: bytes) -> Any:
    """Find an option of an extension. Replaces `iptc.xtables._option_lookup`, for entries that have the field `base`.

    Args:
        options: a ctypes pointer to the first entry of the table, which ends with an entry without a name.
        name: the option, without leading dashes.

    Returns:
        The entry, not a copy of it, or None if the table has no option of this name.
    """
    entry = type(options.contents)
    longer = type("Entry", (ctypes.Structure,), {"_fields_": [*entry._fields_, ("base", ctypes.c_uint)]})
    address = ctypes.addressof(options.contents)
    while (option := entry.from_address(address)).name:
        if option.name == name:
            return option
        address += ctypes.sizeof(longer)
    return None
