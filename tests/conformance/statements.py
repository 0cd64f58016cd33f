"""The numbered statements of both standards, and how the tests' claims about them are read.

The lists stand in `mqtt5.csv` and `mqtt311.csv`, in our own words: id, side (who is bound: server, client or both), section, requirement,
untestable. The last says why a statement has no test; "client: ..." or "server: ..." excuses only that side of it.

A test claims statements with `@pytest.mark.statement("MQTT5-3.1.2-24", "MQTT311-3.1.2-24")`: our broker keeps them. A test of our client says
`side="client"`. Claims are read from the source and not from the collected tests, so that they can be compared with the lists
whatever part of the suite is run.
"""

from __future__ import annotations

import ast
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

FOLDER: Final = Path(__file__).parent
SIDES: Final = ("server", "client")


class Statement(NamedTuple):
    id: str
    side: str
    section: str
    requirement: str
    untestable: str

    @property
    def sides(self) -> tuple[str, ...]:
        """The sides that a test has to show."""
        bound = SIDES if self.side == "both" else (self.side,)
        if not self.untestable:
            return bound
        excused, colon, _ = self.untestable.partition(":")
        return tuple(side for side in bound if side != excused) if colon and excused in SIDES else ()


class Claim(NamedTuple):
    """One `statement` mark. ids that are not written out as strings cannot be compared, and are given as None."""

    path: Path
    line: int
    ids: tuple[str | None, ...]
    side: str


def load_statements() -> dict[str, Statement]:
    """All of them by id, in the order of the lists."""
    found: dict[str, Statement] = {}
    for name in ("mqtt5.csv", "mqtt311.csv"):
        with (FOLDER / name).open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                found[row["id"]] = Statement(**row)
    return found


def claims() -> Iterator[Claim]:
    """Every claim of every test file in this folder."""
    for path in sorted(FOLDER.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.statement":
                ids = tuple(
                    argument.value if isinstance(argument, ast.Constant) and isinstance(argument.value, str) else None for argument in node.args
                )
                sides = [ast.literal_eval(keyword.value) for keyword in node.keywords if keyword.arg == "side"]
                yield Claim(path, node.lineno, ids, sides[0] if sides else "server")
