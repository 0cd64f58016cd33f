"""`--progress`: how far a long job is, on stderr. rich is imported only when it is asked for."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from rich.progress import Progress

SHOW_INTERVAL_S: Final = 0.1  # a display costs a thousand times what a message does


class Meter:
    """Counts messages and bytes, and shows them if `shown`. `total`: messages to come, or None if nobody knows."""

    def __init__(self, title: str, *, shown: bool, total: int | None = None) -> None:
        self.messages_count = 0
        self.payload_bytes = 0
        self._started_at = self._shown_at = time.monotonic()
        self._bar: Progress | None = None
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

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._bar is not None:
            self._show(self._bar, time.monotonic())
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
        counted = f"{self.messages_count:,} messages, {self.payload_bytes:,} bytes, {rate:,.0f} messages/s"
        bar.update(self._task, completed=self.messages_count, counted=counted)
