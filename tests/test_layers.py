"""Imports point one way.

{reasons, words} < errors < wire < core < {store, auth} < messages < pace < channel < net < {client, metrics} < {bridge, inspection}
< hub < control < opening < thread < {...} < config < cli.

A room may import its own and those below. The pure rooms, wire and core, may not touch time, chance, sockets or an event loop,
else a test of theirs would need one. `if TYPE_CHECKING` imports count too: a name needed to say what something is, is a dependency.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import broker

ROOT = Path(broker.__file__).parent.parent
ORDER = [
    {"reasons", "words"},
    {"errors"},
    {"wire"},
    {"core"},
    {"store", "auth"},
    {"messages"},
    {"pace"},
    {"channel"},
    {"net"},
    {"client", "metrics"},
    {"bridge", "inspection"},
    {"hub"},
    {"control"},
    {"opening"},
    {"thread"},
    {"cluster", "http", "testing", "bench"},
]
ORDER += [{"config"}, {"cli"}, {"__main__"}]
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
PURE = {"reasons", "errors", "wire", "core"}
FORBIDDEN = {"trio", "time", "socket", "random", "sqlite3", "asyncio", "threading", "selectors", "select", "secrets", "os", "subprocess"}
FILES = sorted(path for path in (ROOT / "broker").rglob("*.py") if path != ROOT / "broker" / "__init__.py")  # the one that names them all, lazily


def imported(path: Path, text: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import in the text, wherever it stands; relative ones are spelled out."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = path.relative_to(ROOT).parts[: -node.level or None] if node.level else ()
            module = ".".join((*parents, *filter(None, [node.module])))
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def faults(path: Path, text: str) -> list[str]:
    room = path.relative_to(ROOT / "broker").parts[0].removesuffix(".py")
    found = []
    for line, name in imported(path, text):
        top, *rest = name.split(".")
        if room in PURE and top in FORBIDDEN:
            found.append(f"{path.relative_to(ROOT)}:{line}: {room} is pure and imports {top}")
        if top == "broker" and rest and rest[0] in LEVEL and rest[0] != room and LEVEL[rest[0]] >= LEVEL[room]:
            found.append(f"{path.relative_to(ROOT)}:{line}: {room} imports {rest[0]}, which is not below it")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    assert path.relative_to(ROOT / "broker").parts[0].removesuffix(".py") in LEVEL, "a new room: give it a place in ORDER"
    assert faults(path, path.read_text("utf-8")) == []


def test_a_wrong_import_is_seen() -> None:
    text = """
import time
if TYPE_CHECKING:
    from ..net import server
def late():
    from broker.cli import main
    from broker import client, errors
"""
    wrong = [
        "is pure and imports time",
        "imports net, which is not below it",
        "imports cli, which is not below it",
        "imports client, which is not below it",
    ]
    assert sorted(faults(ROOT / "broker" / "core" / "engine.py", text)) == sorted(
        f"broker/core/engine.py:{line}: core {what}" for line, what in zip((2, 4, 6, 7), wrong, strict=True)
    )
