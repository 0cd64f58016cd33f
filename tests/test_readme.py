"""What the README shows is true: its programs run as they stand, its links lead somewhere, and it never sends people to a stranger's package."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PRINTED = {"In a Trio program": "sensors/kitchen 21.5\n", "In asyncio, threads, pytest": "", "Ask, and be answered": "21.5\n"}


@pytest.mark.parametrize(("program", "printed"), list(zip(BLOCKS, PRINTED.values(), strict=True)), ids=list(PRINTED))
def test_program_runs(program: str, printed: str) -> None:
    calls = "".join(f"\n{name}()" for name in re.findall(r"^def (test_\w+)", program, re.MULTILINE))
    argv = [sys.executable, "-W", "error", "-c", program + calls]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    errors = "".join(line for line in done.stderr.splitlines(True) if not line.startswith("Client is not connected."))  # paho's own noise
    assert (done.returncode, done.stdout, errors) == (0, printed, "")


@pytest.mark.parametrize("page", sorted(["README.md", "CHANGELOG.md", *(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]))
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), target
    assert not re.search(r"pip3? install (-\S+ )*broker\b", text), "that is somebody else's package"


def test_commands_of_the_readme_exist() -> None:
    help_text = subprocess.run([sys.executable, "-m", "broker", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True).stdout
    named = set(re.findall(r"\bbroker (\w+)\b", README)) & set(re.findall(r"^  (\w+) ", help_text, re.MULTILINE))
    assert {"serve", "check", "sub", "pub", "rr"} <= named
    for goal in re.findall(r"^ {4}make (\w+)|`make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{''.join(goal)}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE), goal
