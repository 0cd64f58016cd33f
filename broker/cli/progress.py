"""`--progress`: how far a long job is, on stderr. rich is imported only when it is asked for."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress


class Meter:
    """Counts messages and bytes, and shows them if `shown`. `total`: messages to come, or None if nobody knows."""

    def __init__(self, title: str, *, shown: bool, total: int | None = None) -> None:
        self.messages_count = 0
        self.payload_bytes = 0
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
            self._task = self._bar.add_task(title, total=total, counted=self._counted(None))

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def count(self, payload_bytes: int) -> None:
        self.messages_count += 1
        self.payload_bytes += payload_bytes
        if self._bar is not None:
            self._bar.update(
                self._task, completed=self.messages_count, counted=self._counted(self._bar.tasks[0].finished_speed or self._bar.tasks[0].speed)
            )

    def _counted(self, speed: float | None) -> str:
        text = f"{self.messages_count:,} messages, {self.payload_bytes:,} bytes"
        return text if speed is None else f"{text}, {speed:,.0f} messages/s"
