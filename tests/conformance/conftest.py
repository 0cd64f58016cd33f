"""Holds the tests of this folder to the lists of statements, and gives each of them a virtual clock.

A mark that names a statement which does not exist stops the collection: a mistyped id would leave a statement without its test, unnoticed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from trio.testing import MockClock

from tests.conformance.statements import FOLDER, SIDES, load_statements
from tests.conftest import run_bounded

pytest.register_assert_rewrite("tests.conformance.harness")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", 'statement(*ids, side="server"): the numbered statements that this test shows, and which of our programs keeps them'
    )
    config.addinivalue_line("markers", "real_clock: this test talks to the kernel, whose time is not ours to move")


def run_virtual(function: Callable[[], Awaitable[Any]], **options: Any) -> Any:
    """Time passes only when everybody waits for it."""
    options["clock"] = MockClock(autojump_threshold=0)
    return run_bounded(function, **options)


@pytest.hookimpl(trylast=True)  # after tests/conftest.py has chosen a run function for all
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    known = load_statements()
    for item in items:
        if FOLDER not in item.path.parents:
            continue
        for mark in item.iter_markers("statement"):
            wrong = [id for id in mark.args if id not in known]
            if wrong or not mark.args or mark.kwargs.get("side", "server") not in SIDES or mark.kwargs.keys() - {"side"}:
                raise pytest.UsageError(f"{item.nodeid}: not a statement: {mark.args} {mark.kwargs}")
            # For tests/conformance/table.py: reports carry these home from xdist's workers, marks stay there.
            item.user_properties += [("statement", f"{id} {mark.kwargs.get('side', 'server')}") for id in mark.args]
        if item.get_closest_marker("real_clock") is None and item.get_closest_marker("trio") is not None:
            item.add_marker(pytest.mark.trio(run=run_virtual), append=False)
