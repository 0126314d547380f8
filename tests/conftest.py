"""The order of the tests: files that take longest first, so that no process is left with one of them at the end."""

from pathlib import Path

import pytest

# By folder, what comes first; files not named here follow. Within a place the order stays.
FIRST = ("test_end_to_end.py", "ui", "serving", "train")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by place; the tests themselves pass in any order."""
    items.sort(key=lambda item: place(item.path))


def place(path: Path) -> int:
    """Where a test file stands in `FIRST`, by its name or its folder's."""
    return next((number for number, name in enumerate(FIRST) if name in (path.name, path.parent.name)), len(FIRST))
