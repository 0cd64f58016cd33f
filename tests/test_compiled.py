"""Pure Python or machine code: never a mixture, and it is said which."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
from importlib.machinery import ExtensionFileLoader
from pathlib import Path

import pytest

import broker

PACKAGE = Path(broker.__file__).parent
PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"
HOOK = tomllib.loads(PYPROJECT.read_text("utf-8"))["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["mypyc"]
INTERPRETED = {path for pattern in HOOK["exclude"] for path in PACKAGE.parent.glob(pattern.lstrip("/"))}
MODULES = [path for pattern in HOOK["include"] for path in sorted(PACKAGE.parent.glob(pattern.lstrip("/")))]


@pytest.mark.parametrize("path", [path for path in MODULES if path.name != "__init__.py"], ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_each_module_is_what_the_package_says(path: Path) -> None:
    module = importlib.import_module(f"broker.{path.parent.name}.{path.stem}")
    assert module.__spec__ is not None
    is_native = isinstance(module.__spec__.loader, ExtensionFileLoader)
    assert is_native == (broker.compiled and path not in INTERPRETED)


def test_the_sources_come_along() -> None:
    assert MODULES
    assert all(path.is_file() for path in INTERPRETED)


def test_the_version_says_it() -> None:
    done = subprocess.run([sys.executable, "-m", "broker", "--version"], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == f"broker {broker.__version__} ({'compiled' if broker.compiled else 'pure Python'})\n"
