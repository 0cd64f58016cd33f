"""`receive_nowait`: what is here and nothing else, settling as `receive` does."""

from __future__ import annotations

import pytest
import trio

from broker.channel import MessageChannel, Subscription
from broker.messages import Message


class Owed:
    """A receipt that counts how often it was settled."""

    manual = False
    done = False

    def __init__(self) -> None:
        self.settled = 0

    def settle(self) -> None:
        self.settled += 1

    def refuse(self) -> None:
        raise AssertionError("nothing is refused here")


async def test_what_is_here_comes_in_order_and_the_one_before_is_settled() -> None:
    channel = MessageChannel()
    subscription = Subscription((), (), channel)
    owed = [Owed(), Owed()]
    for index, receipt in enumerate(owed):
        channel.offer(Message(str(index), qos=1, packet_id=index + 1, receipt=receipt))
    assert subscription.receive_nowait().topic == "0"
    assert [receipt.settled for receipt in owed] == [0, 0]
    assert subscription.receive_nowait().topic == "1"
    assert [receipt.settled for receipt in owed] == [1, 0]
    with pytest.raises(trio.WouldBlock):
        subscription.receive_nowait()
    assert [receipt.settled for receipt in owed] == [1, 1]


def test_the_end_and_an_error_are_told() -> None:
    ended, failed = MessageChannel(), MessageChannel()
    ended.close()
    failed.close(ValueError("why"))
    with pytest.raises(trio.EndOfChannel):
        Subscription((), (), ended).receive_nowait()
    with pytest.raises(ValueError, match="why"):
        Subscription((), (), failed).receive_nowait()
