"""The safety nets of the suite are shown to hold: each test here runs pytest on a small file under our own conftest.py."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import broker

CONFTEST = Path(__file__).with_name("conftest.py")
NEVER = """
import pytest, trio
from hypothesis import given, strategies

@pytest.fixture
async def endless_setup():
    await trio.sleep_forever()
    yield

@pytest.fixture
async def endless_teardown():
    yield
    await trio.sleep_forever()

async def test_body():
    await trio.sleep_forever()

async def test_virtual_time(autojump_clock):
    while True:
        await trio.sleep(3600)

async def test_setup(endless_setup):
    pass

async def test_teardown(endless_teardown):
    pass

@given(strategies.integers())
async def test_hypothesis(n):
    await trio.sleep_forever()

async def test_good(autojump_clock):
    await trio.sleep(3600)
"""


SKIPS = {
    "test_body.py": "import pytest\ndef test_x(): pytest.skip('no such tool')",
    "test_async_body.py": "import pytest\nasync def test_x(): pytest.skip('no such tool')",
    "test_mark.py": "import pytest\n@pytest.mark.skip(reason='no such tool')\ndef test_x(): pass",
    "test_fixture.py": "import pytest\n@pytest.fixture\ndef tool(): pytest.skip('no such tool')\ndef test_x(tool): pass",
    "test_module.py": "import pytest\npytest.skip('no such tool', allow_module_level=True)",
}


def run_pytest(folder: Path, files: dict[str, str], **environment: str) -> str:
    shutil.copy(CONFTEST, folder)
    (folder / "pytest.ini").write_text("[pytest]\ntrio_mode = true\naddopts = -p no:cacheprovider -p no:xdist -ra\n")
    for name, text in files.items():
        (folder / name).write_text(text)
    # The inner run starts from a clean slate: neither a worker of this one nor its options.
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "BROKER_", "COV_"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--continue-on-collection-errors"],
        cwd=folder,
        env=inherited | {"HYPOTHESIS_PROFILE": "ci", "COLUMNS": "200"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout + done.stderr


def test_every_async_test_ends(tmp_path: Path) -> None:
    out = run_pytest(tmp_path, {"test_it.py": NEVER}, BROKER_TEST_SECONDS_MAX="0.2")
    assert "5 failed, 1 passed" in out, out
    for name in ("body", "virtual_time", "setup", "teardown", "hypothesis"):
        assert re.search(rf"FAILED test_it.py::test_{name} - .*still running after 0.2 s of real time", out), out


def test_skips_can_be_forbidden(tmp_path: Path) -> None:
    forbidden = run_pytest(tmp_path, SKIPS, BROKER_FORBID_SKIPS="1")
    assert "= 2 failed, 3 errors in" in forbidden, forbidden
    assert "test_mark.py::test_x: skips are forbidden here (BROKER_FORBID_SKIPS): Skipped: no such tool" in forbidden, forbidden


def test_a_run_for_the_compiled_wheel_needs_it_and_names_what_it_leaves_out(tmp_path: Path) -> None:
    marked = "import pytest\n@pytest.mark.pure_python('it replaces functions')\ndef test_x(): assert False"
    out = run_pytest(tmp_path, {"test_marked.py": marked}, BROKER_TEST_COMPILED="1", BROKER_FORBID_SKIPS="1")
    if broker.compiled:
        assert "not with compiled modules: it replaces functions" in out, out
        assert "1 skipped" in out, out
    else:
        assert "is pure Python" in out, out
