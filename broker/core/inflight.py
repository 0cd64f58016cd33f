"""QoS 1 and 2 as state tables, one for whoever sends and one for whoever receives. Neither knows which side it plays.

Sender (MQTT 5.0, 4.3; `unacknowledged` and `released` are the two waiting states):

    state            event             action                          next
    -                send              take an id, quota - 1           unacknowledged
    unacknowledged   PUBACK, QoS 1     free the id, quota + 1          -
    unacknowledged   PUBREC >= 0x80    free the id, quota + 1          -
    unacknowledged   PUBREC            drop the message, PUBREL        released
    released         PUBREC            PUBREL again                    released
    released         PUBCOMP           free the id, quota + 1          -
    unknown id       PUBREC            PUBREL 0x92                     -
    unknown id       PUBACK, PUBCOMP   nothing                         -

Receiver: a QoS 2 id is held from its first PUBLISH to its PUBREL; a PUBLISH with a held id is a repetition.
"""

from __future__ import annotations

from typing import Any, Final, Generic, Protocol, TypeVar

from broker.core.id_table import IdTable
from broker.core.packet_ids import PacketIds, any_of, in_turn, single
from broker.errors import ProtocolError

PACKET_ID_MAX: Final = 65_535


class HasQoS(Protocol):
    @property
    def qos(self) -> int: ...


M = TypeVar("M", bound=HasQoS)


class Sender(Generic[M]):
    """Packet Identifiers, the send quota and what waits for an acknowledgement, in one direction of one Session.

    Ids and what waits for them outlive a connection; the quota does not (MQTT 5.0, 4.9).
    """

    __slots__ = ("_last_id", "quota", "quota_max", "released", "reserved", "resend", "unacknowledged")

    def __init__(self) -> None:
        self.unacknowledged: IdTable[M] = IdTable()
        """PUBLISH sent, PUBACK or PUBREC awaited; in the order of sending."""
        self.released: IdTable[bool] = IdTable()
        """PUBREL sent, PUBCOMP awaited; in the order of the PUBRECs [MQTT5-4.6.0-4]. True: its PUBLISH took one of this connection's quota."""
        self.reserved: dict[int, None] = {}  # an empty set takes three times as much, in every session
        """Ids of SUBSCRIBE and UNSUBSCRIBE, which share the pool [MQTT5-2.2.1-3]."""
        self.resend: dict[int, M] | None = None
        """What this connection still has to repeat before anything new; from the newest to the oldest, since a dict gives its last one first."""
        self.quota = 0
        self.quota_max = 0
        self._last_id = 0

    def begin(self, quota_max: int) -> None:
        """A connection begins: the quota is the peer's Receive Maximum, and all that is unacknowledged is to be repeated.

        The caller sends a PUBREL for each id in `released`, then drains `resend` while `quota` lasts [MQTT5-4.4.0-1].
        """
        assert self is not NO_SENDER
        # A released id takes no quota on a new connection; so that the two together never use up the ids [MQTT5-2.2.1-4], it lowers the limit there.
        released_count = len(self.released)
        self.quota = self.quota_max = min(quota_max, PACKET_ID_MAX - released_count)
        if released_count:
            for packet_id in self.released:
                self.released[packet_id] = False
        unacknowledged = self.unacknowledged.items()
        self.resend = dict(reversed(unacknowledged)) if unacknowledged else None

    def take_id(self) -> int:
        """An id that nothing here uses [MQTT5-2.2.1-4]. The caller keeps fewer than 65,535 under way."""
        packet_id = self._last_id
        while True:
            packet_id = packet_id % PACKET_ID_MAX + 1
            if packet_id not in self.unacknowledged and packet_id not in self.released and packet_id not in self.reserved:
                self._last_id = packet_id
                return packet_id
            if packet_id == self._last_id:
                raise RuntimeError("all 65,535 Packet Identifiers are in use")

    def take_ids(self, count: int) -> PacketIds:
        """Several, as if one by one; the caller uses all of them."""
        if count == 1:
            return single(self.take_id())
        first = self._last_id % PACKET_ID_MAX + 1
        if first + count <= PACKET_ID_MAX + 1:
            wanted = in_turn(first, count)
            if self.are_free(wanted) and (not self.reserved or self.reserved.keys().isdisjoint(wanted.numbers)):
                self._last_id = wanted.largest
                return wanted
        return any_of([self.take_id() for _ in range(count)])

    def are_free(self, ids: PacketIds) -> bool:
        """Does no message use one of them?"""
        unacknowledged, released = self.unacknowledged, self.released
        if (unacknowledged.singles or unacknowledged.runs) and not unacknowledged.has_none_of(ids):
            return False
        return not (released.singles or released.runs) or released.has_none_of(ids)

    def reserve_id(self) -> int:
        """An id for a SUBSCRIBE or UNSUBSCRIBE, until `unreserve_id`."""
        packet_id = self.take_id()
        self.reserved[packet_id] = None
        return packet_id

    def unreserve_id(self, packet_id: int) -> None:
        """The SUBACK or UNSUBACK has come, or nobody waits for it any more. Idempotent."""
        self.reserved.pop(packet_id, None)

    def send(self, message: M) -> int:
        """Take an id and one of the quota for a new QoS 1 or 2 message; the caller has seen `quota > 0` [MQTT5-4.9.0-2]."""
        packet_id = self.take_id()
        self.unacknowledged.apart()[packet_id] = message
        self.quota -= 1
        return packet_id

    def abandon(self, packet_id: int) -> None:
        """The message taken for sending cannot be sent to this peer: free its id and quota as if it were done [MQTT5-3.1.2-25]."""
        del self.unacknowledged[packet_id]
        self.restore_quota(1)

    def next_resend(self) -> tuple[int, M] | None:
        """The oldest message still to be repeated, charged to the quota; None when there is none or the quota is used up."""
        while self.resend and self.quota > 0:
            packet_id, message = self.resend.popitem()
            self.quota -= 1
            self.resend = self.resend or None
            return packet_id, message
        self.resend = self.resend or None
        return None

    def on_puback(self, packet_id: int) -> M | None:
        """The message that is done; None for an id that waits for no PUBACK. Whatever the code, it is not sent again."""
        message = self.unacknowledged.get(packet_id)
        if message is None:
            return None
        if message.qos != 1:
            raise ProtocolError(f"PUBACK for packet id {packet_id}, which is QoS 2")
        self._settle(packet_id)
        self.restore_quota(1)
        return message

    def on_pubrec(self, packet_id: int, failed: bool) -> tuple[M | None, bool]:
        """(the message that this PUBREC settles, is the id known?). Answer PUBREL: 0x00 if known and not failed, 0x92 if not known."""
        message = self.unacknowledged.get(packet_id)
        if message is None:
            return None, packet_id in self.released
        if message.qos != 2:
            raise ProtocolError(f"PUBREC for packet id {packet_id}, which is QoS 1")
        self._settle(packet_id)
        if failed:
            self.restore_quota(1)
        else:
            self.released[packet_id] = True
        return message, True

    def _settle(self, packet_id: int) -> None:
        """It waits no more. One that this connection had not repeated yet takes its one of the quota now: or the exchange that goes on would take
        none, and in the end there would be more of them than ids."""
        del self.unacknowledged.apart()[packet_id]
        if self.resend and self.resend.pop(packet_id, None) is not None:
            self.quota -= 1
            self.resend = self.resend or None

    def on_pubcomp(self, packet_id: int) -> bool:
        """Was the id waiting for it? Whatever the code, the exchange is over."""
        took_quota = self.released.get(packet_id)
        if took_quota is None:
            return False
        del self.released[packet_id]
        if took_quota:
            # Not for a PUBREL repeated on resume: others may have that place by now, and one more would be above the Receive Maximum [MQTT5-3.3.4-9].
            self.restore_quota(1)
        return True

    def forget(self) -> list[M]:
        """The Session is lost: free every id and return what was not acknowledged, oldest first."""
        lost = self.unacknowledged.values()
        self.unacknowledged.clear()
        self.released.clear()
        self.resend = None
        self.quota = self.quota_max
        return lost

    @property
    def count(self) -> int:
        """Exchanges under way."""
        return len(self.unacknowledged) + len(self.released)

    def restore_quota(self, count: int) -> None:
        """So many exchanges are over that took one [MQTT5-4.9.0-1]."""
        quota = self.quota + count
        self.quota = quota if quota < self.quota_max else self.quota_max


class Receiver:
    """The QoS 2 ids that a peer has published and not yet released."""

    __slots__ = ("held", "held_count_max")

    def __init__(self) -> None:
        self.held: IdTable[None] = IdTable()
        self.held_count_max = PACKET_ID_MAX
        """So many may be held at once on this connection; one more breaks the Receive Maximum."""

    def begin(self, receive_maximum: int) -> None:
        """A connection begins. What was held before does not count against its Receive Maximum, which is no part of the Session (MQTT 5.0, 4.9)."""
        assert self is not NO_RECEIVER
        self.held_count_max = min(PACKET_ID_MAX, len(self.held) + receive_maximum)

    def on_publish(self, packet_id: int) -> bool:
        """True if it is new, and held from now on; False if it repeats one that is held [MQTT5-4.3.3-10]."""
        if packet_id in self.held:
            return False
        self.held[packet_id] = None
        return True

    def on_pubrel(self, packet_id: int) -> bool:
        """Forget the id; was it held? Answer PUBCOMP: 0x00 if it was, 0x92 if not."""
        if packet_id in self.held:
            del self.held[packet_id]
            return True
        return False


NO_SENDER: Final[Sender[Any]] = Sender()
NO_RECEIVER: Final = Receiver()
"""What all Sessions share that have never sent, or received, such a message, which are most. They stay empty: without a quota nothing is sent."""
