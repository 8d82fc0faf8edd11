"""User overrides of a rendered bootstrap."""

from __future__ import annotations

from typing import Any


def merge(rendered: Any, override: Any) -> Any:
    """Merge an override into a rendered JSON value.

    Objects are merged member by member. Lists whose items all have a `name` are merged by that name; items with new names
    are appended. Anything else in the override replaces the rendered value.
    """
    if isinstance(rendered, dict) and isinstance(override, dict):
        merged = {name: merge(value, override[name]) if name in override else value for name, value in rendered.items()}
        return {**merged, **{name: value for name, value in override.items() if name not in rendered}}
    if _is_named(rendered) and _is_named(override):
        items = {item["name"]: item for item in rendered}
        for item in override:
            items[item["name"]] = merge(items.get(item["name"], {}), item)
        return list(items.values())
    return override


def _is_named(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) and isinstance(item.get("name"), str) for item in value)
    )
