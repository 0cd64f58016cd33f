"""What holds for every test: an end to its time, repeatable examples, and a name for whatever is missing.

A test that waits for ever tells nobody why, so each Trio run is cancelled after `SECONDS_MAX` of *real* time, however
virtual its clock is, fixtures and their teardown included (tests/test_conftest.py shows it). Outside programs that a machine
lacks are skipped by name; with BROKER_FORBID_SKIPS=1, as `.ci/run` sets, such a skip is a failure.

BROKER_TEST_COMPILED=1 (`make test-compiled`) is for the compiled wheel: nothing runs unless it is the one that is imported, and
tests marked `pure_python` are skipped, each with its reason; of skips only these are no failure there.
"""

from __future__ import annotations

import functools
import inspect
import os
import shutil
import threading
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, settings

SECONDS_MAX = float(os.environ.get("BROKER_TEST_SECONDS_MAX", "30"))
FORBID_SKIPS = os.environ.get("BROKER_FORBID_SKIPS", "") not in ("", "0")
TESTS_COMPILED = os.environ.get("BROKER_TEST_COMPILED", "") not in ("", "0")
MQTTJS = Path(__file__).parent / "e2e" / "mqttjs"

# The same examples on every run: a red build that turns green by itself teaches people to press the button again.
settings.register_profile("ci", derandomize=True, max_examples=100, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("dev", max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


# ---- an end to every test ---------------------------------------------------------------------------------------------


async def bounded(run: Callable[[], Awaitable[Any]]) -> Any:
    """Await `run()`; fail when it takes longer than SECONDS_MAX. A thread keeps the time: trio.fail_after would follow a virtual clock."""
    with trio.CancelScope() as scope:
        token = trio.lowlevel.current_trio_token()

        def cancel() -> None:
            try:
                token.run_sync_soon(scope.cancel)
            except trio.RunFinishedError:
                return

        timer = threading.Timer(SECONDS_MAX, cancel)
        timer.daemon = True
        timer.start()
        try:
            result = await run()
        finally:
            timer.cancel()
    if scope.cancel_called:
        pytest.fail(f"still running after {SECONDS_MAX:g} s of real time")
    return result


def run_bounded(function: Callable[[], Awaitable[Any]], **options: Any) -> Any:
    return trio.run(bounded, function, **options)


def bound_item(item: pytest.Item) -> None:
    """pytest-trio lets a marker name the run function, except for Hypothesis tests, whose inner test is wrapped instead."""
    test: Any = getattr(item, "obj", None)
    inner = getattr(getattr(test, "hypothesis", None), "inner_test", None)
    if inner is None and inspect.iscoroutinefunction(test):
        item.add_marker(pytest.mark.trio(run=run_bounded), append=False)
    elif inspect.iscoroutinefunction(inner) and not hasattr(inner, "bounded"):

        @functools.wraps(inner)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            return await bounded(functools.partial(inner, *args, **kwargs))

        wrapper.bounded = True  # type: ignore[attr-defined]  # parametrized tests share one inner test
        test.hypothesis.inner_test = wrapper


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        bound_item(item)
        why = left_out(item)
        if why:
            item.add_marker(pytest.mark.skip(reason=f"not with compiled modules: {why}"))


# ---- the package under test -------------------------------------------------------------------------------------------


def pytest_sessionstart() -> None:
    import broker

    if TESTS_COMPILED and not broker.compiled:
        pytest.exit(f"BROKER_TEST_COMPILED is set, and {Path(broker.__file__).parent} is pure Python", returncode=1)


def left_out(item: pytest.Item) -> str:
    """Why this test is not for compiled modules, if they are what is tested."""
    marker = item.get_closest_marker("pure_python")
    return str(marker.args[0]) if marker is not None and TESTS_COMPILED else ""


# ---- no silent skips --------------------------------------------------------------------------------------------------


def forbid(report: pytest.TestReport | pytest.CollectReport, what: str) -> None:
    if FORBID_SKIPS and report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"{what}: skips are forbidden here (BROKER_FORBID_SKIPS): {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if not left_out(item):
        forbid(report, item.nodeid)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    forbid(report, collector.nodeid)
    return report


# ---- outside programs -------------------------------------------------------------------------------------------------


def find_program(name: str, package: str) -> str:
    """The path of an outside program, or a skip that says what to install."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        pytest.skip(f"{name} is not installed (Debian package {package})")
    return path


@pytest.fixture(scope="session")
def mosquitto_pub() -> str:
    return find_program("mosquitto_pub", "mosquitto-clients")


@pytest.fixture(scope="session")
def mosquitto_sub() -> str:
    return find_program("mosquitto_sub", "mosquitto-clients")


@pytest.fixture(scope="session")
def mosquitto_rr() -> str:
    return find_program("mosquitto_rr", "mosquitto-clients")


@pytest.fixture(scope="session")
def node() -> str:
    """Node with mqtt.js beside the scripts; `npm install` in tests/e2e puts it there."""
    path = find_program("node", "nodejs")
    if not (MQTTJS.parent / "node_modules" / "mqtt" / "package.json").is_file():
        pytest.skip("mqtt.js is not installed (cd tests/e2e && npm install)")
    return path
