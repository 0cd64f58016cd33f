"""The programs in docs/sockets.md run as they stand, and the Chinese page has the same ones."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGES = {"en": ROOT / "docs" / "sockets.md", "zh": ROOT / "docs" / "sockets.zh.md"}


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


PROGRAMS = [pytest.param(text, id=f"{language}-{n}") for language, page in PAGES.items() for n, text in enumerate(blocks(page), 1)]


@pytest.mark.skipif(sys.platform != "linux", reason="what the snippets show of TCP is Linux's behaviour")
@pytest.mark.parametrize("program", PROGRAMS)
def test_program_runs(program: str) -> None:
    argv = [sys.executable, "-W", "error", "-W", "ignore::ResourceWarning", "-c", program]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr


def test_both_pages_show_the_same_programs() -> None:
    """Comments are translated, code is not."""
    english, chinese = (["\n".join(map(ast.dump, ast.parse(text).body)) for text in blocks(page)] for page in PAGES.values())
    assert len(english) > 5
    assert english == chinese


@pytest.mark.parametrize("page", list(PAGES.values()), ids=list(PAGES))
def test_what_the_page_points_at_exists(page: Path) -> None:
    text = page.read_text("utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (page.parent / target).resolve().exists(), target
    for target in re.findall(r"`(broker/[\w/]+(?:\.py)?)`?", text):
        assert (ROOT / target).exists(), target
