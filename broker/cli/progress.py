"""`--progress`: how far a long job is, on stderr. rich is imported only when it is asked for."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from rich.progress import Progress

    from broker.cli.output import Output

SHOW_INTERVAL_S: Final = 0.1  # a display costs a thousand times what a message does
CLEAR_LINE: Final = b"\r\x1b[2K"


class Meter:
    """Counts messages and bytes, and shows them if `shown`. `total`: messages to come, or None if nobody knows."""

    def __init__(self, title: str, *, shown: bool, total: int | None = None, output: Output | None = None) -> None:
        """output: where messages are printed meanwhile. On one terminal each takes the place of the line that shows how far we are, which is
        then drawn below it; where messages do not end their lines (-N) it is drawn at the end only."""
        self.messages_count = 0
        self.payload_bytes = 0
        self._started_at = self._shown_at = time.monotonic()
        self._bar: Progress | None = None
        self._live = output is None or not output.is_terminal or output.ends_lines
        if shown:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                *([BarColumn()] if total is not None else []),
                TextColumn("{task.fields[counted]}"),
                TimeElapsedColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(title, total=total, counted="")
            console = self._bar.console
            understands = console.is_terminal and not console.legacy_windows  # older consoles of Windows print such sequences
            if output is not None and output.is_terminal and output.ends_lines and understands:
                output.before = CLEAR_LINE

    def __enter__(self) -> Self:
        if self._bar is not None and self._live:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._bar is not None:
            self._show(self._bar, time.monotonic())
            self._bar.start()  # if it was not
            self._bar.stop()

    def count(self, payload_bytes: int) -> None:
        self.messages_count += 1
        self.payload_bytes += payload_bytes
        if self._bar is not None:
            now = time.monotonic()
            if now - self._shown_at >= SHOW_INTERVAL_S:
                self._show(self._bar, now)

    def _show(self, bar: Progress, now: float) -> None:
        self._shown_at = now
        rate = self.messages_count / max(now - self._started_at, 0.001)
        counted = f"{self.messages_count:,} message{'' if self.messages_count == 1 else 's'}, {self.payload_bytes:,} bytes, {rate:,.0f}/s"
        bar.update(self._task, completed=self.messages_count, counted=counted)
