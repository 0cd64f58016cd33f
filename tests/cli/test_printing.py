"""The loop of `sub`, without a broker: how it takes messages, and when it ends."""

from __future__ import annotations

import os
from typing import Any, cast

import pytest
import trio
import trio.testing

from broker.channel import MessageChannel, Subscription
from broker.cli import output as output_module
from broker.cli.output import Output
from broker.cli.printing import Receiver
from broker.cli.progress import Meter
from broker.cli.running import OutputClosed
from broker.cli.settings import connection_of
from broker.cli.sub import command, listening_of
from broker.messages import Message
from broker.pace import IN_A_ROW_COUNT_MAX


class Kept:
    """An Output that keeps what it was given."""

    def __init__(self) -> None:
        self.data = b""

    async def write(self, data: bytes) -> None:
        self.data += data


def receiver(output: Kept, *words: str) -> Receiver:
    params: dict[str, Any] = command.make_context("sub", ["-t", "#", *words]).params
    connection = connection_of(params)
    return Receiver(cast(Any, None), connection, listening_of(params, connection), cast(Output, output), Meter("", shown=False))


def filled(*messages: Message) -> Subscription:
    channel = MessageChannel(buffer_count_max=100_000)
    for message in messages:
        channel.offer(message)
    channel.close()
    return Subscription((), (), channel)


async def test_a_burst_costs_few_turns_of_the_loop(mock_clock: trio.testing.MockClock) -> None:
    """One read brings thousands of small messages: taken one a turn, they would outrun the loop and be dropped."""
    messages_count = 25_000
    turns = 0

    class Clock(trio.abc.Instrument):
        def before_io_wait(self, timeout: float) -> None:
            nonlocal turns
            turns += 1

    source = filled(*[Message("t", b"x")] * messages_count)
    output = Kept()
    clock = Clock()
    trio.lowlevel.add_instrument(clock)
    try:
        await receiver(output)._receive_from(source)
    finally:
        trio.lowlevel.remove_instrument(clock)
    assert output.data == b"x\n" * messages_count
    assert turns <= messages_count // IN_A_ROW_COUNT_MAX + 10


async def test_it_ends_after_the_last_one_wanted_and_leaves_the_rest() -> None:
    source = filled(*[Message(str(number), b"x") for number in range(5)])
    output = Kept()
    await receiver(output, "-C", "3", "-v")._receive_from(source)
    assert output.data == b"0 x\n1 x\n2 x\n"
    assert source.statistics()["waiting"] == 2


CHOSEN = [
    ([], b"stale\nfresh\nlast\n"),
    (["-R"], b"fresh\nlast\n"),
    (["-T", "a"], b"fresh\nlast\n"),
    (["--retained-only"], b"stale\n"),
    (["-R", "-C", "1"], b"fresh\n"),
]


@pytest.mark.parametrize(("words", "printed"), CHOSEN, ids=[" ".join(row[0]) or "all" for row in CHOSEN])
async def test_which_are_printed(words: list[str], printed: bytes) -> None:
    output = Kept()
    await receiver(output, *words)._receive_from(filled(Message("a", b"stale", retain=True), Message("b", b"fresh"), Message("c", b"last")))
    assert output.data == printed


async def test_a_payload_that_is_not_json_is_told_and_the_next_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    output = Kept()
    await receiver(output, "-F", "%J")._receive_from(filled(Message("a", b"{"), Message("b", b"1")))
    assert output.data.startswith(b"\n{")
    assert capsys.readouterr().err == "broker: the payload on topic 'a' is not JSON (%J); %j prints any\n"


async def test_a_full_pipe_is_waited_for_and_nothing_else_is() -> None:
    reading, writing = os.pipe()
    output = Output(writing)
    done = trio.Event()
    ticked = trio.Event()
    size = 1_000_000

    async def write() -> None:
        await output.write(b"x" * size)
        done.set()

    async def read() -> None:
        # The pipe holds 64 KiB: the writer waits by now, and this task runs all the same.
        await trio.testing.wait_all_tasks_blocked()
        assert not done.is_set()
        ticked.set()
        got = 0
        while got < size:
            got += len(await trio.to_thread.run_sync(os.read, reading, 65_536))  # Windows waits for no pipe otherwise

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        nursery.start_soon(read)
    assert done.is_set()
    assert ticked.is_set()
    os.close(writing)
    os.close(reading)


async def test_a_reader_that_has_gone_is_an_end_of_its_own() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with pytest.raises(OutputClosed):
        await Output(writing).write(b"x")
    os.close(writing)


async def test_a_file_takes_everything_at_once(tmp_path: Any) -> None:
    with open(tmp_path / "out", "wb") as file:
        output = Output(file.fileno())
        assert not output._may_block
        await output.write(b"x" * 100_000)
    assert (tmp_path / "out").stat().st_size == 100_000
    assert output_module._PIECE >= 512
