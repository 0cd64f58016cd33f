"""MessageChannel, a bounded buffer between whoever receives messages and the tasks that take them; `Subscription`, its public face.

Offering is synchronous and never waits: the socket is read whatever a loop does. What a full buffer does with QoS 0 is the
overflow rule's, and everything not delivered is counted. A message of QoS 1 or 2 carries a receipt, and is settled when the hand
that holds it asks for the next, or when the channel closes without an exception. Nothing here knows a client or a broker.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, Final, Self

import trio

from broker.messages import Ack, Message, Overflow, QoS
from broker.pace import IN_A_ROW_COUNT_MAX, Pace

_IDLE_TURNS_MAX: Final = 10
"""Turns of the event loop in which nothing was taken, before a connection that gave way goes on: a few, for a loop that publishes what it gets."""

OVERFLOWS = ("drop-oldest", "drop-newest", "latest", "disconnect", "refuse")


class Hand:
    """What one iterator, or one `receive()` handle, was given last and has not settled.

    passing: its task may go on with another hand, as after `break`: asking again by any of them then settles this one too.
    Else `await subscription.receive()` before a loop would leave its message unsettled, and with it all that came after.
    """

    __slots__ = ("gone", "message", "pace", "passing", "task")

    def __init__(self, *, passing: bool) -> None:
        self.pace = Pace()
        self.message: Message | None = None
        self.task: trio.lowlevel.Task | None = None
        self.passing = passing
        self.gone = False


class MessageChannel:
    """buffer_count_max: messages waiting to be taken. ack: when a message is settled, as `Client.subscribe` says.

    spares_acknowledged: messages with a receipt are taken beyond the bound, for their sender has one of its own (Receive
    Maximum); with False the overflow rule acts on all. on_disconnect: called when the rule is "disconnect" and must act.
    """

    def __init__(
        self,
        *,
        ack: Ack = "on_next",
        buffer_count_max: int = 1000,
        overflow: Overflow = "drop-oldest",
        spares_acknowledged: bool = False,
        on_disconnect: Callable[[], None] | None = None,
    ) -> None:
        if buffer_count_max < 1:
            raise ValueError(f"buffer_count_max must be at least 1, not {buffer_count_max!r}")
        if overflow not in OVERFLOWS:
            raise ValueError(f"overflow must be one of {', '.join(OVERFLOWS)}, not {overflow!r}")
        if ack not in ("on_next", "on_receipt", "manual"):
            raise ValueError(f"ack must be on_next, on_receipt or manual, not {ack!r}")
        self.ack: Ack = ack
        self.buffer_count_max = buffer_count_max
        self.overflow: Overflow = overflow
        self.spares_acknowledged = spares_acknowledged
        self.on_disconnect = on_disconnect
        self.siblings: list[MessageChannel] = [self]
        """This channel and its clones: whoever feeds one feeds them all."""
        self.closed = False
        self.error: Exception | None = None
        self._buffer: deque[Message] = deque()
        self._hands: list[Hand] = []
        self._holding = 0  # of the hands
        self._given: dict[int, Message] = {}  # ack="manual": taken, not acknowledged when last looked at
        self._takers = trio.lowlevel.ParkingLot()
        self._received = self._taken = self._dropped = self._refused = 0
        self._idle_at = -1  # the count of those taken when it was last given way to in vain

    # ---- for whoever feeds it ----------------------------------------------------------------------------------------

    def offer(self, message: Message) -> bool:
        """Take a message, or leave it to the overflow rule; False if this message was not taken. Synchronous."""
        if self.closed:
            return False
        self._received += 1
        receipt = message.receipt
        if len(self._buffer) >= self.buffer_count_max and not (self.spares_acknowledged and receipt is not None) and not self._make_room(message):
            return False
        self._buffer.append(message)
        if receipt is not None and self.ack == "on_receipt" and len(self._buffer) <= self.buffer_count_max:
            receipt.settle()
        if self._takers:
            self._takers.unpark()
        return True

    def _make_room(self, message: Message) -> bool:
        """Apply the overflow rule; True if there is room for the message now."""
        if self.overflow == "disconnect" and self.on_disconnect is not None:
            self.on_disconnect()
        victim = None
        if self.overflow == "latest":
            victim = next((index for index, waiting in enumerate(self._buffer) if waiting.topic == message.topic and self._may_drop(waiting)), None)
        if victim is None and self.overflow in ("latest", "drop-oldest"):
            victim = next((index for index, waiting in enumerate(self._buffer) if self._may_drop(waiting)), None)
        if victim is None:
            self._dropped += 1
            return False
        dropped = self._buffer[victim]
        del self._buffer[victim]
        self._settle_placed()
        self._dropped += 1
        if dropped.receipt is not None:
            dropped.receipt.refuse()
        return True

    def _may_drop(self, waiting: Message) -> bool:
        return waiting.receipt is None or not self.spares_acknowledged

    # ---- for whoever reads a connection, and may give the takers a turn ----------------------------------------------

    @property
    def room(self) -> int:
        """So many more may be offered before somebody has to give way; a full channel that is not being taken from asks nobody to."""
        if self.closed or self._taken == self._idle_at:
            return IN_A_ROW_COUNT_MAX
        return self.buffer_count_max - len(self._buffer)

    @property
    def crowded(self) -> bool:
        """Less room than for what comes in one turn."""
        return self.room < min(IN_A_ROW_COUNT_MAX, (self.buffer_count_max + 3) // 4)

    async def give_way(self) -> None:
        """Let the takers run while it is crowded, as long as they take. A loop that only takes loses nothing; one that waits for
        something else is not waited for, and the overflow rule acts."""
        idle_turns = 0
        while self.crowded:
            taken = self._taken
            await trio.lowlevel.checkpoint()
            idle_turns = 0 if self._taken != taken else idle_turns + 1
            if idle_turns == _IDLE_TURNS_MAX:
                self._idle_at = self._taken

    def waiting(self) -> list[Message]:
        """What no hand has taken yet, oldest first."""
        return list(self._buffer)

    def remove(self, message: Message) -> bool:
        """Take this very message out of the buffer, unsettled; False if it is not there (any more)."""
        for index, waiting in enumerate(self._buffer):
            if waiting is message:
                del self._buffer[index]
                self._settle_placed()
                return True
        return False

    def clone(self) -> MessageChannel:
        """A second channel with the same settings, fed with the same messages from now on."""
        other = MessageChannel(
            ack=self.ack,
            buffer_count_max=self.buffer_count_max,
            overflow=self.overflow,
            spares_acknowledged=self.spares_acknowledged,
            on_disconnect=self.on_disconnect,
        )
        other.closed, other.error = self.closed, self.error
        other.siblings = self.siblings
        self.siblings.append(other)
        return other

    def close(self, error: Exception | None = None) -> None:
        """Nothing more comes: takers get `trio.EndOfChannel`, or `error`. Idempotent; settles nothing."""
        if not self.closed:
            self.closed = True
            self.error = error
            self._takers.unpark_all()

    def settle_hands(self) -> None:
        """The scope ended well: what the hands hold is done. (With ack="manual" that is only for `Message.ack` to say.)"""
        if self.ack == "on_next":
            for hand in self._hands:
                self._settle(hand)

    def release(self) -> tuple[list[Message], list[Message]]:
        """(what was in hand and is not settled, what nobody took); neither is settled, and both are the caller's now."""
        held = [hand.message for hand in self._hands if hand.message is not None]
        held += [given for given in self._given.values() if given.receipt is not None and not given.receipt.done]
        for hand in self._hands:
            hand.message = None
        self._holding = 0
        self._given = {}
        left = list(self._buffer)
        self._buffer.clear()
        return held, left

    def count_refused(self) -> None:
        self._refused += 1

    # ---- for the tasks that take -------------------------------------------------------------------------------------

    def new_hand(self, *, passing: bool) -> Hand:
        hand = Hand(passing=passing)
        self._hands.append(hand)
        return hand

    def drop_hand(self, hand: Hand) -> None:
        """An iterator is gone. What it holds stays unsettled until its task asks for more, or the scope ends."""
        hand.passing = hand.gone = True
        if hand.message is None and hand in self._hands:
            self._hands.remove(hand)

    async def receive(self, hand: Hand, iterator: _Iterator | None = None) -> Message:
        """Settle what the hand holds, and give it the next message; a message is never lost to a cancellation. iterator: whose hand it is; it lives
        as long as it waits here.

        Cancellation is honoured each time. The scheduling point comes when nothing is here, and else as `Pace` says.
        """
        if self._holding:
            self._settle(hand)
            if self._holding:
                self._settle_passing()
        pace = hand.pace
        if pace.goes_on():
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            await trio.lowlevel.checkpoint()
            pace.rested()
        while not self._buffer:
            if self.error is not None:
                raise self.error
            if self.closed:
                raise trio.EndOfChannel if iterator is None else StopAsyncIteration
            await self._takers.park()
            pace.rested()
        return self._take(hand)

    def receive_nowait(self, hand: Hand) -> Message:
        """The same without waiting: trio.WouldBlock if nothing is here now. A stream of small messages comes faster, thousands in one
        read, than a loop that waits for each gets its turns."""
        self._settle(hand)
        if not self._buffer:
            if self.error is not None:
                raise self.error
            raise trio.EndOfChannel if self.closed else trio.WouldBlock
        return self._take(hand)

    def _take(self, hand: Hand) -> Message:
        message = self._buffer.popleft()
        self._taken += 1
        ack = self.ack
        if ack == "on_receipt":
            self._settle_placed()
        elif message.receipt is not None:
            if ack == "manual":
                self._give(message)
            else:
                hand.message = message
                hand.task = trio.lowlevel.current_task()
                self._holding += 1
        return message

    def _settle(self, hand: Hand) -> None:
        message = hand.message
        if message is None:
            return
        hand.message = hand.task = None
        self._holding -= 1
        if message.receipt is not None:
            message.receipt.settle()

    def _settle_passing(self) -> None:
        task = trio.lowlevel.current_task()
        for other in self._hands:
            if other.passing and other.task is task:
                self._settle(other)
        self._hands = [other for other in self._hands if other.message is not None or not other.gone]

    def _settle_placed(self) -> None:
        """ack="on_receipt": one has moved up to within the bound."""
        if self.ack == "on_receipt" and len(self._buffer) >= self.buffer_count_max:
            receipt = self._buffer[self.buffer_count_max - 1].receipt
            if receipt is not None:
                receipt.settle()

    def _give(self, message: Message) -> None:
        # Bounded by Receive Maximum, twice over: those acknowledged are swept out when they could be half.
        self._given[id(message)] = message
        if len(self._given) > 64 and len(self._given) & (len(self._given) - 1) == 0:
            self._given = {key: given for key, given in self._given.items() if given.receipt is not None and not given.receipt.done}

    def statistics(self) -> Mapping[str, int]:
        """Counts since it opened: offered, taken by a task, dropped by the overflow rule, refused at the end; and what waits now."""
        return {
            "received": self._received,
            "taken": self._taken,
            "dropped": self._dropped,
            "refused": self._refused,
            "waiting": len(self._buffer),
        }


class _Iterator:
    """One task's iteration: it has a hand of its own, so that several tasks may iterate one Subscription."""

    __slots__ = ("_channel", "_hand")

    def __init__(self, channel: MessageChannel) -> None:
        self._channel = channel
        self._hand = channel.new_hand(passing=False)

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Coroutine[Any, Any, Message]:
        return self._channel.receive(self._hand, self)

    def __del__(self) -> None:
        self._channel.drop_hand(self._hand)


class Subscription:
    """A bounded channel. `async for message in subscription`; several tasks may iterate it, each message goes to one of them.

    Settling (QoS 1, 2). ack="on_next": when the iterator that holds a message asks for the next one, or the scope ends
    without an exception (so `break` settles). "on_receipt": when it has a place in this buffer. "manual": `message.ack()`.
    An exception or cancellation leaves the message in hand unsettled, and so does any end of the scope what ack="manual" was not told of: with
    keep=True the next scope of that filter gets it again, in this `connect` or in the next one; with keep=False it is answered 0x83 (3.1.1:
    plainly) and counted, since nobody is left to take it and Receive Maximum must not leak.
    PUBACK and PUBREC leave in order of arrival over the **whole connection** [MQTT5-4.6.0-2, -3]: a settled message
    waits behind an older unsettled one. So one slow subscription holds up the others after receive_maximum messages;
    ack="on_receipt", or a second `connect`, frees them. The socket is read always: pings, PUBACKs and requests go on.
    QoS 0 beyond buffer_count_max follows `overflow`, and is counted.

    A connection that breaks and comes back in between changes nothing of this: what a program has in hand it is not given a second time, and
    `ack()` is said on the new connection. So "not acknowledged" is no way to ask for it again; to leave the scope is.

    filters: as they were asked for. granted: the QoS of each.

    Turns. Each message honours cancellation. Other tasks get their turn when no message is here, and else after 256 messages or
    a millisecond. While the buffer has no room and loops go on taking, the connection is read at their pace, so a loop that only
    takes loses nothing, however small its buffer; one that waits for something else is not waited for.

    One trap. What `receive()` gave, or a loop left by `break`, is settled when that handle or **the same task** asks for more, not when
    another task does: it might still be at work on it. So a first `await receive()` in a task that then only starts others which iterate
    holds back all acknowledgements until the scope ends. Let one of those take the first message too, or use ack="manual".
    """

    def __init__(self, filters: tuple[str, ...], granted: tuple[QoS, ...], channel: MessageChannel) -> None:
        self.filters = filters
        self.granted = granted
        self._channel = channel
        self._hand = channel.new_hand(passing=True)

    def __repr__(self) -> str:
        return f"Subscription({', '.join(map(repr, self.filters))})"

    def __aiter__(self) -> AsyncIterator[Message]:
        return _Iterator(self._channel)

    async def receive(self) -> Message:
        """The next message; settles the one this handle gave before. trio.EndOfChannel after the scope."""
        return await self._channel.receive(self._hand)

    def receive_nowait(self) -> Message:
        """The next message if it is here, else trio.WouldBlock; settles the one this handle gave before."""
        return self._channel.receive_nowait(self._hand)

    def clone(self) -> Self:
        """A second channel on the same filters: each gets every message. It ends with the scope of the first."""
        return type(self)(self.filters, self.granted, self._channel.clone())

    def statistics(self) -> Mapping[str, int]:
        """Messages received, taken, dropped, refused, and waiting now."""
        return self._channel.statistics()
