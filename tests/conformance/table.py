"""`make conformance`: run the tests of this folder, print what each statement's tests showed, and write docs/conformance.md.

The exit status is 0 only when every statement is answered: by tests that all passed, or by the reason why it binds nobody testable.
What stands in choices.md, the ways taken where the standards are silent, goes into the document too.
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.conformance.statements import FOLDER, Statement, load_statements

DOCUMENT: Final = FOLDER.parent.parent / "docs" / "conformance.md"
HEADINGS: Final = {"MQTT5": "MQTT 5.0", "MQTT311": "MQTT 3.1.1"}
HOLDS: Final = "holds"
FAILS: Final = "FAILS"
NO_TEST: Final = "NO TEST"

INTRODUCTION: Final = """# Conformance

Every numbered statement of MQTT 5.0 (251) and MQTT 3.1.1 (141), in our own words, and the tests that would fail if it were not kept. A
statement that binds servers is tested on the wire against our broker, one that binds clients against our client with a scripted
broker, and one that binds both against both. Written by `make conformance`; the lists and the tests are in `tests/conformance/`.
"""


class Row(NamedTuple):
    """One statement and one side that it binds."""

    statement: Statement
    side: str
    tests: tuple[str, ...]
    result: str


class Recorder:
    """A pytest plugin: keeps what became of each test that claims statements, in this process and in xdist's workers."""

    def __init__(self) -> None:
        self.tests: defaultdict[tuple[str, str], dict[str, bool]] = defaultdict(dict)
        """By statement and side: test function to whether all its cases passed."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        failed = report.failed or (report.skipped and report.when != "teardown")
        if report.when != "call" and not failed:
            return
        path, _, name = report.nodeid.partition("::")
        test = f"{Path(path).name}::{name.partition('[')[0]}"
        for key, value in report.user_properties:
            if key == "statement":
                id, side = str(value).split()
                found = self.tests[id, side]
                found[test] = found.get(test, True) and not failed

    def rows(self) -> Iterator[Row]:
        for one in load_statements().values():
            bound = ("server", "client") if one.side == "both" else (one.side,)
            others = [side for side in ("server", "client") if side not in bound and self.tests.get((one.id, side))]
            for side in [*bound, *others]:
                tests = self.tests.get((one.id, side), {})
                if tests:
                    result = HOLDS if all(tests.values()) else FAILS
                elif side in one.sides:
                    result = NO_TEST
                else:
                    result = "not testable"
                yield Row(one, side, tuple(sorted(tests)), result)


def printed(rows: list[Row]) -> Iterator[str]:
    """Lines for a terminal."""
    for row in rows:
        tests = f"{row.tests[0]}{f' and {len(row.tests) - 1} more' if len(row.tests) > 1 else ''}" if row.tests else row.statement.untestable
        yield f"{row.statement.id:<18}{row.side:<8}{row.result:<14}{tests}"


def summary(rows: list[Row]) -> str:
    answered = {row.statement.id for row in rows} - {row.statement.id for row in rows if row.result in (FAILS, NO_TEST)}
    return (
        f"{len(answered)} of {len({row.statement.id for row in rows})} statements answered, {sum(row.result == HOLDS for row in rows)} rows by tests"
    )


def document(rows: list[Row], choices: str) -> str:
    """The Markdown."""
    lines = [INTRODUCTION, f"{summary(rows)}.\n"]
    by_id: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_id[row.statement.id].append(row)
    for prefix, heading in HEADINGS.items():
        lines += [f"## {heading}\n", "| Statement | Side | Requirement | Tests | Result |", "|---|---|---|---|---|"]
        for id, some in by_id.items():
            if id.startswith(prefix + "-"):
                lines += [_markdown(row, row is some[0]) for row in some]
        lines.append("")
    return "\n".join([*lines, choices])


def _markdown(row: Row, first: bool) -> str:
    statement = row.statement
    requirement = f"{statement.section}: {statement.requirement}".replace("|", "\\|") if first else ""
    files: defaultdict[str, list[str]] = defaultdict(list)
    for test in row.tests:
        path, _, name = test.partition("::")
        files[path].append(name.removeprefix("test_").replace("_", " "))
    tests = "; ".join(f"`{path}`: {', '.join(names)}" for path, names in files.items()) or statement.untestable.replace("|", "\\|")
    return f"| {statement.id if first else ''} | {row.side} | {requirement} | {tests} | {row.result} |"


def main(arguments: list[str]) -> int:
    recorder = Recorder()
    os.environ.setdefault("HYPOTHESIS_PROFILE", "ci")
    status = pytest.main([str(FOLDER), "-q", "--no-header", "-p", "no:cacheprovider", *arguments], plugins=[recorder])
    rows = list(recorder.rows())
    print()
    for line in printed(rows):
        print(line)
    print(f"\n{summary(rows)}")
    DOCUMENT.write_text(document(rows, (FOLDER / "choices.md").read_text(encoding="utf-8")), encoding="utf-8")
    print(f"written: {DOCUMENT.relative_to(FOLDER.parent.parent)}")
    unanswered = [row for row in rows if row.result in (FAILS, NO_TEST)]
    return 1 if status != pytest.ExitCode.OK or unanswered else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
