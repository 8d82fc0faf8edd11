"""Options and fixtures for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).parent
# Tests that run many programs each, look at the whole machine before and after, or share a fixture that is dear to make.
ALONE = {
    "machine": ("lab", "test_demo.py", "test_readme.py"),
    "envoy": ("envoy",),
    "webhook": ("webhook",),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-goldens", action="store_true", help="write the golden files anew instead of comparing")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run side by side (pytest-xdist), keep together those that must not meet others of their kind."""
    groups = {name: group for group, names in ALONE.items() for name in names}
    for item in items:
        if group := groups.get(item.path.relative_to(TESTS).parts[0]):
            item.add_marker(pytest.mark.xdist_group(group))
