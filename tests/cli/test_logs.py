"""[log]: the shape of a line, where it goes, and a file that was moved away."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from broker.cli import logs
from broker.cli.running import Failure
from tests.systems import files_can_be_moved, has_symlinks, zones_are_signed


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """The logger `broker` is the process's: other tests find it as it was."""
    logger = logs.logger
    before = logger.handlers[:], logger.propagate, logger.level
    logger.handlers = []
    yield
    for handler in logger.handlers:
        handler.close()
    logger.handlers, logger.propagate = before[0], before[1]
    logger.setLevel(before[2])


@zones_are_signed
def test_a_line_of_text(tmp_path: Path) -> None:
    logs.configure("info", "text", str(tmp_path / "log"))
    logging.getLogger("broker.clients").info("connected %r from %s", "a\nb", "x\ny\x1b[0m é")
    logging.getLogger("broker").debug("not at this level")
    line = (tmp_path / "log").read_text()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d{4} info: connected 'a\\nb' from x\\ny\\x1b\[0m é\n", line)


@has_symlinks
def test_a_full_disk_does_not_keep_a_file_from_being_opened_anew(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """SIGHUP is what rotates it, and ended the broker."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    path = tmp_path / "log"
    path.symlink_to("/dev/full")
    logs.configure("info", "text", str(path))
    logs.logger.info("lost")
    assert capfd.readouterr().err == "broker: lines of the log are lost: no space left on device\n"
    path.unlink()
    logs.reopen()
    logs.logger.info("kept")
    assert path.read_text().endswith("info: kept\n")


@files_can_be_moved
def test_lines_that_are_lost_are_told_seldom(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Each was two tracebacks on stderr."""
    path = tmp_path / "log"
    logs.configure("info", "text", str(path))
    path.rename(tmp_path / "log.1")
    path.mkdir()  # as where the disk has become read-only
    logs.reopen()
    said = f"broker: lines of the log are lost: {path}: is a directory\n"
    for number in range(100):
        logs.logger.info("line %d", number)
    assert capfd.readouterr().err == said
    for handler in logs.logger.handlers:
        assert isinstance(handler, logs.LineHandler)
        handler._quiet_until_s = 0.0
    logs.logger.info("a line")
    logs.logger.info("a line for %d %d", 1)  # a mistake of a program is another matter
    assert capfd.readouterr().err.startswith(f"{said}--- Logging error ---\n")
    path.rmdir()
    logs.logger.info("kept")
    assert path.read_text().endswith("info: kept\n")


def test_a_line_of_json(tmp_path: Path) -> None:
    logs.configure("debug", "json", str(tmp_path / "log"))
    try:
        raise ValueError("why")
    except ValueError:
        logging.getLogger("broker").exception("it failed")
    found = json.loads((tmp_path / "log").read_text())
    assert (found["level"], found["logger"], found["message"]) == ("error", "broker", "it failed")
    assert "ValueError: why" in found["traceback"]
    assert isinstance(found["time"], float)


def test_a_light_record_makes_the_same_lines(tmp_path: Path) -> None:
    class Heavy(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            light = logs.Record(record.name, record.levelno, "", 0, record.msg, record.args, record.exc_info, None, None)
            light.created, light.msecs = record.created, record.msecs
            for formatter in (logs.TextFormatter(), logs.JsonFormatter()):
                lines.append((formatter.format(record), formatter.format(light)))

    lines: list[tuple[str, str]] = []
    logs.configure("info", "text", str(tmp_path / "log"))
    logs.logger.addHandler(Heavy())
    logs.logger.warning("%s of %s", 1, "two")
    try:
        raise ValueError("why")
    except ValueError:
        logs.logger.exception("it failed")
    assert len(lines) == 4
    assert all(heavy == light for heavy, light in lines)


def test_the_second_of_a_line_is_its_own() -> None:
    formatter = logs.TextFormatter()
    records = [logs.Record("broker", logging.INFO, "", 0, "here", None, None) for _ in range(3)]
    for record, created in zip(records, (1_000_000_000.5, 1_000_000_001.25, 1_000_000_000.5), strict=True):
        record.created, record.msecs = created, created % 1 * 1000
    first, second, third = (formatter.format(record) for record in records)
    assert first[17:23] == third[17:23] == "40.500"
    assert second[17:23] == "41.250"


@files_can_be_moved
def test_a_file_that_was_moved_away_is_opened_anew(tmp_path: Path) -> None:
    logs.configure("info", "text", str(tmp_path / "log"))
    logs.logger.info("first")
    (tmp_path / "log").rename(tmp_path / "log.1")
    logs.reopen()
    logs.logger.info("second")
    assert "first" in (tmp_path / "log.1").read_text()
    assert "second" in (tmp_path / "log").read_text()


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"log\.target: there is no directory .*no; make it, or choose another path"):
        logs.configure("info", "text", str(tmp_path / "no" / "log"))
    with pytest.raises(Failure, match=r"log\.target: .* is a directory; a file is wanted"):
        logs.configure("info", "text", str(tmp_path))
    with pytest.raises(Failure, match=r"log\.target: cannot write .*: not a directory|log\.target: there is no directory"):
        logs.configure("info", "text", "/dev/null/log")


def test_the_level_can_be_changed(tmp_path: Path) -> None:
    logs.configure("warning", "text", str(tmp_path / "log"))
    logs.logger.info("unheard")
    logs.set_level("debug")
    logs.logger.debug("heard")
    text = (tmp_path / "log").read_text()
    assert "unheard" not in text
    assert "heard" in text


@pytest.fixture
def clients() -> Iterator[logging.Logger]:
    """The logger of the clients' lines, as it is in a process that is a broker and nothing else."""
    logs.clients.__class__ = logs.ClientLogger
    yield logs.clients
    logs.clients.__class__ = logging.Logger
    vars(logs.clients).pop("lines", None)


@pytest.mark.parametrize("form", ["text", "json"])
async def test_lines_of_clients_are_written_when_the_turn_is_over_and_before_any_other(tmp_path: Path, form: str, clients: logging.Logger) -> None:
    log = tmp_path / "log"
    logs.configure("info", form, str(log))
    clients.info("before %s", "the loop")
    assert len(log.read_text().splitlines()) == 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(logs.write_each_turn)
        await wait_all_tasks_blocked()
        clients.info("connected %r", "a")
        clients.info("connected %r", "b\n")
        assert len(log.read_text().splitlines()) == 1
        await wait_all_tasks_blocked()
        assert len(log.read_text().splitlines()) == 3
        clients.info("connected %r", "c")
        clients.warning("refused %r", "d")
        lines = log.read_text().splitlines()
        assert len(lines) == 5
        logs.reopen()
        clients.info("connected %r", "e")
        nursery.cancel_scope.cancel()
    clients.info("after the loop: 100%")
    clients.debug("not at this level")
    logs.set_level("warning")
    clients.info("nor this one")
    logs.set_level("info")
    lines = log.read_text().splitlines()
    said = ["before the loop", "connected 'a'", "connected 'b\\n'", "connected 'c'", "refused 'd'", "connected 'e'", "after the loop: 100%"]
    if form == "json":
        assert [json.loads(line)["message"] for line in lines] == said
    else:
        assert [line.partition(": ")[2] for line in lines] == said


async def test_no_more_than_some_lines_are_held(tmp_path: Path, clients: logging.Logger) -> None:
    logs.configure("info", "text", str(tmp_path / "log"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(logs.write_each_turn)
        await wait_all_tasks_blocked()
        for number in range(logs.HELD_COUNT_MAX):
            clients.info("connected %r", number)
        assert len((tmp_path / "log").read_text().splitlines()) == logs.HELD_COUNT_MAX
        nursery.cancel_scope.cancel()
