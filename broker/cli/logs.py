"""Where the broker's log lines go and how they look: the [log] table of the config file. The standard library's logging, and only for
the logger `broker`, so that an embedder's own logging is never touched."""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import time
from typing import Final

from broker.cli.running import Failure, os_error_line

LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_SYSLOG: Final = ("/dev/log", "/var/run/syslog")

logger: Final = logging.getLogger("broker")


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

    def format(self, record: logging.LogRecord) -> str:
        moment = time.localtime(record.created)
        stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', moment)}.{int(record.msecs):03d}{time.strftime('%z', moment)}"
        line = f"{stamp} {record.levelname.lower()}: {_printable(record.getMessage())}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


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
        return logging.StreamHandler()
    if target == "syslog":
        for path in _SYSLOG:
            if os.path.exists(path):
                return logging.handlers.SysLogHandler(path)
        raise Failure(f"log.target: syslog, and there is none here ({' or '.join(_SYSLOG)})")
    try:
        return logging.FileHandler(target, encoding="utf-8")
    except OSError as error:
        raise Failure(f"log.target: cannot write {os_error_line(error)}") from error
