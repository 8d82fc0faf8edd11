"""Durations in Go's syntax and in protobuf's JSON mapping."""

from __future__ import annotations

import re
from decimal import Decimal

from istio_init.core.errors import InvalidInput

NANOSECONDS = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "μs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
SECOND = NANOSECONDS["s"]
PART = re.compile(r"([0-9]{1,18}(?:\.[0-9]{0,18})?|\.[0-9]{1,18})(ns|us|µs|μs|ms|s|m|h)", re.ASCII)
ALLOWED = "a duration such as 45s, 1m0s or 500ms"


def parse_duration(text: str, where: str) -> int:
    """Parse a duration like Go's time.ParseDuration; returns nanoseconds.

    Args:
        text: such as `1h2m3.5s`.
        where: the flag, for the error.

    Raises:
        InvalidInput: it is not a duration, or negative.
    """
    parts = PART.findall(text)
    if text == "0":
        return 0
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise InvalidInput(where, f"{text!r} is not a duration", ALLOWED)
    return int(sum(Decimal(number) * NANOSECONDS[unit] for number, unit in parts))


def to_json(nanoseconds: int) -> str:
    """Format a `google.protobuf.Duration`: seconds with 0, 3, 6 or 9 decimals (protobuf's JSON mapping)."""
    seconds, rest = divmod(nanoseconds, SECOND)
    if rest == 0:
        return f"{seconds}s"
    digits = f"{rest:09}"
    while digits.endswith("000"):
        digits = digits.removesuffix("000")
    return f"{seconds}.{digits}s"
