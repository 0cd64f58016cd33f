"""The guide's examples run as they stand, in a pytest of their own; the plugin costs nothing where nobody asks for it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
GUIDE = (ROOT / "docs" / "testing.md").read_text("utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
# An environment with the broker installed loads the plugin by its entry point; a checkout that was installed before there was one needs this.
LOAD = ["-p", "broker.testing.plugin", "-p", "no:cacheprovider", "-W", "error"]


def run_pytest(directory: Path, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    (directory / "test_example.py").write_text(text, "utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    argv = [sys.executable, "-m", "pytest", "-q", *LOAD, *options, "test_example.py"]
    return subprocess.run(argv, cwd=directory, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(("number", "passed"), [(0, 5), (1, 3)])
def test_the_examples_run(number: int, passed: int, tmp_path: Path) -> None:
    done = run_pytest(tmp_path, EXAMPLES[number], "-p", "trio", "-o", "trio_mode=true")
    assert (done.returncode, f"{passed} passed" in done.stdout) == (0, True), done.stdout + done.stderr


def test_the_plugin_costs_nothing() -> None:
    program = (
        "import sys, pytest; before = set(sys.modules); import broker.testing.plugin; "
        "print(sorted(set(sys.modules) - before - {'broker', 'broker.testing', 'broker.testing.plugin'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == "[]"


def test_it_is_an_entry_point() -> None:
    assert 'broker = "broker.testing.plugin"' in (ROOT / "pyproject.toml").read_text("utf-8").partition("[project.entry-points.pytest11]")[2]


def test_limits_go_by_name(tmp_path: Path) -> None:
    text = "import pytest\n\n@pytest.mark.mqtt_broker(10)\ndef test_it(mqtt_broker): pass\n"
    done = run_pytest(tmp_path, text)
    assert "takes limits by name" in done.stdout


def test_the_nearest_marker_decides(tmp_path: Path) -> None:
    text = """
import pytest
pytestmark = pytest.mark.mqtt_broker(packet_bytes_max=1000, queue_count_max=1)

@pytest.mark.mqtt_broker(packet_bytes_max=500)
def test_it(mqtt_broker):
    assert mqtt_broker._limits == {"packet_bytes_max": 500, "queue_count_max": 1}
"""
    assert "1 passed" in run_pytest(tmp_path, text).stdout
