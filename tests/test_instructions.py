"""The instruction check: what it lets pass and what not, and that its paths and its committed numbers are of one mind.

The counting itself needs valgrind and half a minute; `make bench-check` does it, and `.ci/run` runs that.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.instructions import compare, load, total_of, updated
from benchmarks.paths import PATHS
from benchmarks.paths import Path as BenchPath


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_every_path_does_its_work_again_and_again(path: BenchPath) -> None:
    step = path.make()
    assert step() == step() > 0


def test_only_a_cost_of_five_percent_more_fails() -> None:
    committed = {"same": 1000.0, "a little": 1000.0, "too much": 1000.0, "less": 1000.0}
    lines, failed = compare({"same": 1000.0, "a little": 1049.0, "too much": 1051.0, "less": 900.0, "new": 5.0}, committed)
    assert failed == ["too much: +5.1%"]
    assert [line for line in lines if "TOO MUCH" in line] == [line for line in lines if line.startswith("too much")]
    assert any(line.startswith("less") and "commit it" in line for line in lines)
    assert any(line.startswith("new") and "not committed" in line for line in lines)


def test_an_update_keeps_other_pythons_and_says_why() -> None:
    before = {"python": {"A": {"x": 1.0}, "B": {"x": 10.0, "y": 20.0}}, "history": [{"reason": "first"}]}
    after = updated(before, "B", {"x": 12.04}, "it checks more")
    assert after["python"] == {"A": {"x": 1.0}, "B": {"x": 12.0, "y": 20.0}}
    assert [entry["reason"] for entry in after["history"]] == ["first", "it checks more"]
    assert after["history"][-1]["changed"] == {"x": [10.0, 12.0]}


def test_the_committed_numbers_have_every_path_and_a_reason() -> None:
    data = load()
    assert data["python"]
    for costs in data["python"].values():
        assert set(costs) == {path.name for path in PATHS}
    assert all(entry["reason"] for entry in data["history"])


def test_the_total_is_read_from_a_dump_and_a_missing_one_is_told(tmp_path: Path) -> None:
    dump = tmp_path / "out.1"
    dump.write_text("version: 1\nevents: Ir\nfn=(1) x\n1 5\ntotals: 12345\n")
    assert total_of(dump) == 12345
    with pytest.raises(RuntimeError, match="wrote no out.2"):
        total_of(tmp_path / "out.2")


def test_the_committed_file_is_laid_out_as_the_tool_writes_it() -> None:
    text = (Path(__file__).parent.parent / "benchmarks" / "instructions.json").read_text("utf-8")
    assert text == json.dumps(json.loads(text), indent=1, ensure_ascii=False) + "\n"
