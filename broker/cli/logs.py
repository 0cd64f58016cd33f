"""Where the broker's log lines go and how they look: the [log] table of the config file. The standard library's logging, and only for
the logger `broker`, so that an embedder's own logging is never touched."""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Final, TextIO

from broker.cli.running import Failure, os_error_line

LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_SYSLOG: Final = ("/dev/log", "/var/run/syslog")

logger: Final = logging.getLogger("broker")


class Record(logging.LogRecord):
    """What the formatters below read. Where in the source, in which thread and process cost twice as much as the rest of a line."""

    pathname = filename = module = funcName = ""
    lineno = 0

    def __init__(
        self,
        name: str,
        level: int,
        pathname: str,
        lineno: int,
        msg: object,
        args: tuple[object, ...] | Mapping[str, object] | None,
        exc_info: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None] | None,
        *others: object,
    ) -> None:
        self.name = name
        self.levelno = level
        self.levelname = logging.getLevelName(level)
        self.msg = str(msg)
        self.args = args
        self.exc_info = exc_info
        self.exc_text = self.stack_info = None
        self.created = time.time()
        self.msecs = int(self.created * 1000) % 1000


class LineHandler(logging.StreamHandler[TextIO]):
    """One write and one flush a line, and the lock taken once."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.stream.write(f"{self.format(record)}\n")
            self.stream.flush()
        except Exception:  # as the library does: says so on stderr, if that is open, and goes on
            self.handleError(record)


class JsonFormatter(logging.Formatter):
    """One object a line: time (Unix seconds), level, logger, message, and traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        members: dict[str, object] = {
            "time": round(record.created, 6),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            members["traceback"] = self.formatException(record.exc_info)
        return json.dumps(members, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """2026-11-21T12:34:56.789+0100 info: message. A line stays one line, whatever a client called itself."""

    _second = -1
    _stamp = ("", "")
    """Of that second: what stands before its thousandths, and behind."""

    def format(self, record: logging.LogRecord) -> str:
        second = int(record.created)
        if second != self._second:
            moment = time.localtime(second)
            self._second = second
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S", moment), time.strftime("%z", moment)
        before, behind = self._stamp
        line = f"{before}.{int(record.msecs):03d}{behind} {record.levelname.lower()}: {_printable(record.getMessage())}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def lighten() -> None:
    """For a process that is a broker and nothing else: a line a connect, with what its formatters read and no more."""
    logging._srcfile = None  # the manual's own way (logging HOWTO, Optimization): no search for the caller
    logging.setLogRecordFactory(Record)


def configure(level: str, form: str, target: str) -> None:
    """Send the lines of the logger `broker` to one place, instead of wherever they went before. Raises Failure."""
    handler = _handler(target)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    for old in logger.handlers[:]:
        logger.removeHandler(old)
        old.close()
    logger.addHandler(handler)
    logger.propagate = False
    set_level(level)


def set_level(level: str) -> None:
    logger.setLevel(LEVELS[level])


def reopen() -> None:
    """After the log file was moved away: the next line opens a new one under the old name."""
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.close()


def _handler(target: str) -> logging.Handler:
    if target == "stderr":
        return LineHandler()
    if target == "syslog":
        for path in _SYSLOG:
            if os.path.exists(path):
                return logging.handlers.SysLogHandler(path)
        raise Failure(f"log.target: syslog, and there is none here ({' or '.join(_SYSLOG)})")
    try:
        return logging.FileHandler(target, encoding="utf-8")
    except OSError as error:
        raise Failure(f"log.target: cannot write {os_error_line(error)}") from error
