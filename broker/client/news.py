"""What happens to the connection, told to whoever iterates `Client.connections()`; bounded, the oldest news go first."""

from __future__ import annotations

from collections import deque
from typing import Final, Literal, Self

import trio

News = Literal["connected", "resumed", "lost"]

_NEWS_COUNT_MAX: Final = 100


class NewsIterator:
    """One iteration."""

    def __init__(self) -> None:
        self.ended = False
        self._waiting: deque[News] = deque(maxlen=_NEWS_COUNT_MAX)
        self._changed = trio.lowlevel.ParkingLot()

    def tell(self, what: News) -> None:
        self._waiting.append(what)
        self._changed.unpark_all()

    def end(self) -> None:
        self.ended = True
        self._changed.unpark_all()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> News:
        await trio.lowlevel.checkpoint()
        while not self._waiting:
            if self.ended:
                raise StopAsyncIteration
            await self._changed.park()
        return self._waiting.popleft()
