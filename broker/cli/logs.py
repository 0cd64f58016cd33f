"""Where the broker's log lines go and how they look: the [log] table of the config file. The standard library's logging, and only for
the logger `broker`, so that an embedder's own logging is never touched."""

from __future__ import annotations

import contextlib
import json
import logging
import logging.handlers
import math
import os
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, TextIO

import trio

from broker.cli.running import Failure, os_error_line, say
from broker.words import printable

LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_SYSLOG: Final = ("/dev/log", "/var/run/syslog")

HELD_COUNT_MAX: Final = 256
LOST_INTERVAL_S: Final = 10.0

logger: Final = logging.getLogger("broker")
clients = logging.getLogger("broker.clients")


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


class JsonFormatter(logging.Formatter):
    """One object a line: time (Unix seconds), level, logger, message, and traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        traceback = {"traceback": self.formatException(record.exc_info)} if record.exc_info else {}
        return self.line(record.created, record.levelname.lower(), record.name, record.getMessage(), **traceback)

    def line(self, created: float, level: str, name: str, message: str, **more: str) -> str:
        return json.dumps({"time": round(created, 6), "level": level, "logger": name, "message": message, **more}, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """2026-11-21T12:34:56.789+0100 info: message. A line stays one line, whatever a client called itself."""

    _thousandth = -1
    _stamp = ""
    """Of that thousandth of a second."""

    def format(self, record: logging.LogRecord) -> str:
        line = self.line(record.created, record.levelname.lower(), record.name, record.getMessage())
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line

    def line(self, created: float, level: str, name: str, message: str) -> str:
        thousandth = int(created * 1000)
        if thousandth != self._thousandth:
            self._thousandth = thousandth
            moment = time.localtime(thousandth // 1000)
            self._stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', moment)}.{thousandth % 1000:03d}{time.strftime('%z', moment)}"
        return f"{self._stamp} {level}: {printable(message)}"


class LineHandler(logging.StreamHandler[TextIO]):
    """What is said of clients is held until the turn of the event loop is over; then all its lines are made, and are one write: a line costs
    a fifth, and whoever reads a pipe is not woken by each. Every other line goes out at once, behind what is held."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        self._held: list[tuple[float, str, tuple[object, ...]]] = []
        """Unix time, what is said, and of whom."""
        self._wanted: trio.Event | None = None
        """Set when something is held; None while nobody would write it later."""
        self._quiet_until_s = -math.inf

    def setFormatter(self, formatter: logging.Formatter | None) -> None:
        assert isinstance(formatter, (TextFormatter, JsonFormatter))
        super().setFormatter(formatter)
        self._line = formatter.line

    def hold(self, text: str, args: tuple[object, ...]) -> None:
        """Only in the thread of the event loop. args: of what does not change."""
        held = self._held
        held.append((time.time(), text, args))
        if self._wanted is None or len(held) == HELD_COUNT_MAX:
            self.write_held()
        elif len(held) == 1:
            self._wanted.set()

    def write_held(self) -> None:
        held, self._held = self._held, []
        if not held:
            return
        try:
            line, name = self._line, clients.name
            self._write("\n".join([line(created, "info", name, text % args if args else text) for created, text, args in held]))
        except Exception:
            self.handleError(Record(logger.name, logging.INFO, "", 0, f"{len(held)} lines", None, None))

    async def write_each_turn(self) -> None:
        """Until it is cancelled."""
        try:
            while True:
                self._wanted = trio.Event()
                await self._wanted.wait()
                self.write_held()
        finally:
            self._wanted = None
            self.write_held()

    def emit(self, record: logging.LogRecord) -> None:
        self.write_held()
        try:
            self._write(self.format(record))
        except Exception:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Says so on stderr, if that is open, and goes on; of a disk that is full or read-only in one line, seldom, and not with the library's
        two tracebacks for each that is lost."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif time.monotonic() >= self._quiet_until_s:
            self._quiet_until_s = time.monotonic() + LOST_INTERVAL_S
            say(f"lines of the log are lost: {os_error_line(error)}")

    def _write(self, lines: str) -> None:
        self.stream.write(f"{lines}\n")
        self.stream.flush()


class FileHandler(LineHandler):
    """To a file, opened anew after `close`, which `reopen` calls when it may have been moved away."""

    def __init__(self, path: str) -> None:
        """OSError."""
        self._path = os.path.abspath(path)
        super().__init__(self._open())

    def _open(self) -> TextIO:
        return open(self._path, "a", encoding="utf-8")

    def _write(self, lines: str) -> None:
        if self.stream.closed:
            self.stream = self._open()
        super()._write(lines)

    def close(self) -> None:
        self.write_held()
        with contextlib.suppress(OSError):  # what a full disk did not take; the file is closed all the same
            self.stream.close()
        super().close()


class ClientLogger(logging.Logger):
    """`broker.clients`, most of whose lines are one for a connect and one for a disconnect: those go to a LineHandler without a record."""

    lines: LineHandler | None = None
    """Where they go, if it is that and nothing else, and if the level lets them."""

    def info(self, msg: object, *args: object, **kwargs: Any) -> None:
        if self.lines is None or kwargs:
            super().info(msg, *args, **kwargs)
        else:
            self.lines.hold(str(msg), args)


def lighten() -> None:
    """For a process that is a broker and nothing else: a line a connect, with what its formatters read and no more."""
    logging._srcfile = None  # the manual's own way (logging HOWTO, Optimization): no search for the caller
    logging.setLogRecordFactory(Record)
    clients.__class__ = ClientLogger  # it is there since its module was imported, too early for logging.setLoggerClass


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
    if isinstance(clients, ClientLogger):
        handler = logger.handlers[0] if len(logger.handlers) == 1 else None
        clients.lines = handler if isinstance(handler, LineHandler) and clients.isEnabledFor(logging.INFO) else None


def reopen() -> None:
    """After the log file was moved away: the next line opens a new one under the old name."""
    for handler in logger.handlers:
        if isinstance(handler, FileHandler):
            handler.close()


async def write_each_turn() -> None:
    """What is held: until it is cancelled, if anything ever is."""
    for handler in logger.handlers:
        if isinstance(handler, LineHandler):
            await handler.write_each_turn()


def target_fault(target: str) -> str | None:
    """What keeps the log from going there, as far as that is seen without writing."""
    if target == "stderr":
        return None
    if target == "syslog":
        return None if any(map(os.path.exists, _SYSLOG)) else f"syslog, and there is none here ({' or '.join(_SYSLOG)})"
    return file_fault(target)


def file_fault(path: str) -> str | None:
    """What keeps a file from being made there, likewise."""
    if os.path.isdir(path):
        return f"{path} is a directory; a file is wanted"
    folder = os.path.dirname(os.path.abspath(path))
    return None if os.path.isdir(folder) else f"there is no directory {folder}; make it, or choose another path"


def _handler(target: str) -> logging.Handler:
    if target == "stderr":
        return LineHandler()
    fault = target_fault(target)
    if fault is not None:
        raise Failure(f"log.target: {fault}")
    if target == "syslog":
        return logging.handlers.SysLogHandler(next(filter(os.path.exists, _SYSLOG), _SYSLOG[0]))
    try:
        return FileHandler(target)
    except OSError as error:
        raise Failure(f"log.target: cannot write {os_error_line(error)}") from error
