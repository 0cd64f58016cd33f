"""Our own publishes from the call to the end of their handshake, over as many connections as that takes.

A message waits unencoded until there is room for its bytes, so it can be taken back until then. QoS 1 and 2 go in the order of the
calls and within the broker's Receive Maximum; QoS 0 does not wait for that. After a lost connection what was unacknowledged is
repeated first; after a lost Session QoS 1 is new again, and QoS 2 that had left is unknown.

A program that comes back to a Session of an earlier run does not know which ids the broker still holds from then, of QoS 2 messages whose PUBREL
never left; a new message with such an id would count as a repetition and be lost. So each id is released once before it is first used at QoS 2.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Final

from msgspec import structs

from broker.core.client_state import Capabilities, Outcome, Outgoing
from broker.core.inflight import Sender
from broker.errors import NotSupported
from broker.reasons import ReasonCode
from broker.wire.codec import acknowledgement, encode, encode_string, publish_frame
from broker.wire.packets import MQTT_5, NO_PROPERTIES, Packet, Publish, PubRel
from broker.wire.topics import topic_name_fault

PAYLOAD_BYTES_MAX: Final = 268_000_000
_HEADS_COUNT_MAX: Final = 1000
_HEAD_BYTES_MAX: Final = 256


class ClientOutbox:
    """send: takes a packet with its frame, and answers how many bytes wait to be sent. send_frame: the same of a PUBLISH, without the packet.
    done: told of each that has ended."""

    __slots__ = (
        "_aliases",
        "_batch",
        "_capabilities",
        "_done",
        "_expiring",
        "_free_ids",
        "_heads",
        "_released",
        "_send",
        "_send_frame",
        "_sequence",
        "_version",
        "_waiting",
        "now",
        "sender",
    )

    def __init__(
        self, version: int, send: Callable[[Packet, bytes], int], send_frame: Callable[[bytes], int], done: Callable[[Outgoing], None]
    ) -> None:
        self.sender: Sender[Outgoing] = Sender()
        self._version = version
        self._send = send
        self._send_frame = send_frame
        self._done = done
        self._capabilities = Capabilities(None, version)
        self._waiting: tuple[deque[Outgoing], deque[Outgoing]] = (deque(), deque())  # QoS 0; QoS 1 and 2
        self._released: dict[int, Outgoing] = {}
        self._batch: list[Outgoing] = []  # QoS 0 in the bytes that are being sent
        self._aliases: dict[int, str] = {}
        self._heads: dict[str, bytes] = {}  # topics as they are sent
        self._sequence = 0
        self._free_ids: bytearray | None = None
        """One bit an id: this run has released it, or the Session is of this run and it needs no releasing (None)."""
        self._expiring: list[tuple[float, int, Outgoing]] = []  # a heap
        self.now = 0.0
        """The time of the verb that is being done."""

    # ---- for the program ---------------------------------------------------------------------------------------------

    def check(self, publish: Publish, topic_alias: int | None, *, connected: bool) -> None:
        """NotSupported for what this connection's broker said it has not, ValueError for what cannot be expressed."""
        if publish.properties is NO_PROPERTIES and topic_alias is None:
            refusal = self.refusal(publish, None) if connected else None
            if refusal is not None:
                raise NotSupported(refusal[1])
            if len(publish.payload) > PAYLOAD_BYTES_MAX:
                raise ValueError(f"a payload of {len(publish.payload):,} bytes does not fit into a packet")
            return
        if self._version < MQTT_5 and (publish.properties is not NO_PROPERTIES or topic_alias is not None):
            raise NotSupported("properties of a message need MQTT 5.0")
        if topic_alias is not None and not isinstance(topic_alias, int):
            raise TypeError(f"topic_alias must be a whole number, not {type(topic_alias).__name__}")
        refusal = self.refusal(publish, topic_alias) if connected else None
        if refusal is not None:
            raise NotSupported(refusal[1])
        if publish.properties.subscription_identifiers:
            raise ValueError("Subscription Identifiers are the broker's to send")  # [MQTT5-3.3.4-6]
        if publish.properties is not NO_PROPERTIES:
            encode(structs.replace(publish, packet_id=1 if publish.qos else 0, payload=b""), self._version)  # ValueError here, not while sending
        if len(publish.payload) > PAYLOAD_BYTES_MAX:
            raise ValueError(f"a payload of {len(publish.payload):,} bytes does not fit into a packet")

    def add(self, publish: Publish, offline: str, topic_alias: int | None) -> Outgoing:
        """Put a message at the end of what waits."""
        self._sequence += 1
        outgoing = Outgoing(publish, self._sequence, offline, topic_alias)
        self._waiting[1 if publish.qos else 0].append(outgoing)
        if publish.properties.message_expiry_interval is not None:
            outgoing.expires_at = self.now + publish.properties.message_expiry_interval
            heappush(self._expiring, (outgoing.expires_at, outgoing.sequence, outgoing))
            self._forget_expiries()
        return outgoing

    # ---- a message of QoS 0 that nothing stands before ----

    def frame_at_once(self, publish: Publish) -> bytes | None:
        """The frame of such a message, without properties; None where it has to go the general way, or where that has to say why it may not."""
        able = self._capabilities
        if self._waiting[0] or self._waiting[1] or (publish.retain and not able.retain) or len(publish.payload) > PAYLOAD_BYTES_MAX:
            return None
        frame = publish_frame(0x30 | publish.retain, self._head(publish.topic, b""), publish.payload)
        return frame if len(frame) <= able.packet_bytes_max else None

    def join(self, publish: Publish, owner: object) -> bool:
        """Let it leave with what else there is: an outgoing message of that owner, the last in the batch or a new one, stands for it too. False: it
        has to go the general way."""
        frame = self.frame_at_once(publish)
        if frame is None:
            return False
        last = self._batch[-1] if self._batch else None
        if last is not None and last.owner is owner:
            last.count += 1
            last.size += len(publish.payload)
        else:
            self.began_at_once(publish, "wait").owner = owner
        self._send_frame(frame)
        return True

    def began_at_once(self, publish: Publish, offline: str) -> Outgoing:
        """A part of that frame has left; `batch_sent` follows with the rest."""
        self._sequence += 1
        outgoing = Outgoing(publish, self._sequence, offline)
        outgoing.left = True
        self._batch.append(outgoing)
        return outgoing

    def _head(self, topic: str, packet_id: bytes) -> bytes:
        """What stands before the payload of a message without properties. ValueError for what is no Topic Name."""
        head = self._heads.get(topic)
        if head is None:
            if topic_name_fault(topic) is not None:
                raise ValueError(f"{topic!r} is no Topic Name")
            head = encode_string(topic)
            if len(head) <= _HEAD_BYTES_MAX:
                if len(self._heads) >= _HEADS_COUNT_MAX:
                    self._heads.clear()
                self._heads[topic] = head
        return head + packet_id + b"\0" if self._version >= MQTT_5 else head + packet_id

    # ---- expiry ------------------------------------------------------------------------------------------------------

    def next_expiry(self) -> float:
        """When the next message that waits will have waited too long."""
        expiring = self._expiring
        while expiring and (expiring[0][2].left or expiring[0][2].done):
            heappop(expiring)
        return expiring[0][0] if expiring else math.inf

    def expire(self, now: float) -> None:
        """End what expired before it was ever sent. What was sent goes on: its handshake has begun."""
        self.now = now
        self._expire_until(now)

    def _expire_until(self, deadline: float) -> None:
        while self.next_expiry() <= deadline:
            outgoing = heappop(self._expiring)[2]
            self._waiting[1 if outgoing.qos else 0].remove(outgoing)
            self._finish(outgoing, "expired")

    def _forget_expiries(self) -> None:
        """Of those that have left, when they may be half: a stream of messages that live for a day would pile up."""
        if len(self._expiring) > 64 and len(self._expiring) > 2 * (len(self._waiting[0]) + len(self._waiting[1])):
            self._expiring = [entry for entry in self._expiring if not (entry[2].left or entry[2].done)]
            heapify(self._expiring)

    def _dated(self, outgoing: Outgoing, publish: Publish) -> Publish:
        """With the seconds that are left, as a broker would say [MQTT5-3.3.2-6]; one at least for what is repeated and must be."""
        if outgoing.expires_at == math.inf:
            return publish
        left = max(math.ceil(outgoing.expires_at - self.now - 0.001), 1 if outgoing.left or publish.properties.message_expiry_interval else 0)
        if left == publish.properties.message_expiry_interval:
            return publish
        return structs.replace(publish, properties=structs.replace(publish.properties, message_expiry_interval=left))

    def cancel(self, outgoing: Outgoing) -> bool:
        """True: its PUBLISH had not left, and nothing has happened. False: the handshake goes on."""
        if outgoing.left or outgoing.done:
            outgoing.abandoned = True
            return False
        self._waiting[1 if outgoing.qos else 0].remove(outgoing)
        outgoing.done = True
        return True

    @property
    def count(self) -> int:
        """What waits, or whose handshake is not complete."""
        return len(self._waiting[0]) + len(self._waiting[1]) + self.sender.count

    @property
    def can_send(self) -> bool:
        return bool(self._waiting[0] or (self.sender.quota > 0 and (self._waiting[1] or self.sender.resend)))

    # ---- connections -------------------------------------------------------------------------------------------------

    def begin(self, capabilities: Capabilities) -> list[PubRel]:
        """A connection stands, and the Session with it: the PUBRELs to repeat at once, in the order of their PUBRECs [MQTT5-4.4.0-1]."""
        self._capabilities = capabilities
        self._aliases = {}
        self.sender.begin(capabilities.receive_maximum)
        return [PubRel(packet_id) for packet_id in self.sender.released]

    def inherit(self) -> None:
        """The Session is of an earlier run; `begin` follows."""
        self._free_ids = bytearray(8192)

    def _release(self, packet_id: int, free_ids: bytearray) -> None:
        """Whatever message of an earlier run had it is the broker's, or will be sent again; the PUBCOMP that comes waits for nothing."""
        if not free_ids[packet_id >> 3] & 1 << (packet_id & 7):
            free_ids[packet_id >> 3] |= 1 << (packet_id & 7)
            pubrel = PubRel(packet_id)
            self._send(pubrel, encode(pubrel, self._version))

    def forget_session(self) -> None:
        """The Session is lost; `begin` follows."""
        self._free_ids = None
        released, self._released = self._released, {}
        for outgoing in released.values():
            self._finish(outgoing, "acknowledged")  # its PUBREC said that the message is the broker's
        again = []
        for outgoing in self.sender.forget():
            outgoing.packet_id = 0
            if outgoing.qos == 2:
                self._finish(outgoing, "unknown")
            elif outgoing.abandoned:
                self._finish(outgoing, "acknowledged")
            else:
                again.append(outgoing)
        self._waiting[1].extendleft(reversed(again))

    def lose_connection(self) -> None:
        """What of QoS 0 was being sent may have left, at least in part. At most once: it is not sent again."""
        ended, self._batch = self._batch, []
        for outgoing in ended:
            self._finish(outgoing, "offline" if outgoing.offline == "raise" else "acknowledged")
        for outgoing in [waiting for waiting in self._waiting[0] if waiting.offline != "wait"]:
            self.lose(outgoing)

    def lose(self, outgoing: Outgoing) -> None:
        """It waits for a connection, and is not to."""
        self._waiting[0].remove(outgoing)
        self._finish(outgoing, "offline" if outgoing.offline == "raise" else "dropped")

    # ---- sending -----------------------------------------------------------------------------------------------------

    def refusal(self, publish: Publish, topic_alias: int | None) -> tuple[ReasonCode, str] | None:
        """Why this broker may not be sent this message; None if it may."""
        able = self._capabilities
        if publish.qos > able.maximum_qos:
            return ReasonCode.QOS_NOT_SUPPORTED, f"this broker takes at most QoS {able.maximum_qos}"  # [MQTT5-3.2.2-11]
        if publish.retain and not able.retain:
            return ReasonCode.RETAIN_NOT_SUPPORTED, "this broker retains no messages"  # [MQTT5-3.2.2-14]
        if topic_alias is not None and not 1 <= topic_alias <= able.topic_alias_maximum:
            return ReasonCode.TOPIC_ALIAS_INVALID, f"this broker takes topic aliases from 1 to {able.topic_alias_maximum}, not {topic_alias}"
        return None

    def pump(self, waiting_bytes: int, limit: int) -> None:
        """Send what may go now, until `limit` bytes wait: first what is repeated, then in the order of the calls."""
        sender = self.sender
        if self._expiring:
            self._expire_until(math.nextafter(self.now, -math.inf))  # what may live for 0 s may still be sent at once
        while sender.resend and waiting_bytes < limit:
            again = sender.next_resend()
            if again is None:
                break
            packet_id, outgoing = again
            # The full topic: an alias of an earlier connection means nothing here. DUP is 1 [MQTT5-3.3.1-1].
            waiting_bytes = self._send_publish(outgoing, structs.replace(outgoing.publish, packet_id=packet_id, dup=True), None, waiting_bytes)
        free, counted = self._waiting
        while waiting_bytes < limit:
            may_count = bool(counted) and sender.quota > 0 and not sender.resend
            if free and not (may_count and counted[0].sequence < free[0].sequence):
                outgoing = free.popleft()
                publish = outgoing.publish
                if publish.properties is NO_PROPERTIES and outgoing.topic_alias is None:
                    waiting_bytes = self._send_plain(outgoing, 0, waiting_bytes)
                else:
                    waiting_bytes = self._send_publish(outgoing, publish, outgoing.topic_alias, waiting_bytes)
                if outgoing.left:
                    self._batch.append(outgoing)
            elif may_count:
                outgoing = counted.popleft()
                outgoing.packet_id = sender.send(outgoing)
                if self._free_ids is not None and outgoing.qos == 2:
                    self._release(outgoing.packet_id, self._free_ids)
                publish = outgoing.publish
                if publish.properties is NO_PROPERTIES and outgoing.topic_alias is None:
                    waiting_bytes = self._send_plain(outgoing, outgoing.packet_id, waiting_bytes)
                    continue
                publish = structs.replace(publish, packet_id=outgoing.packet_id)
                waiting_bytes = self._send_publish(outgoing, publish, outgoing.topic_alias, waiting_bytes)
            else:
                break

    def _send_plain(self, outgoing: Outgoing, packet_id: int, waiting_bytes: int) -> int:
        """A new message without properties. How many bytes wait after it."""
        publish = outgoing.publish
        if publish.qos <= self._capabilities.maximum_qos and not (publish.retain and not self._capabilities.retain):
            head = self._head(publish.topic, packet_id.to_bytes(2, "big") if packet_id else b"")
            frame = publish_frame(0x30 | publish.qos << 1 | publish.retain, head, publish.payload)
            if len(frame) <= self._capabilities.packet_bytes_max:
                outgoing.left = True
                return self._send_frame(frame)
        return self._send_publish(outgoing, structs.replace(publish, packet_id=packet_id), None, waiting_bytes)  # says why not

    def _send_publish(self, outgoing: Outgoing, publish: Publish, alias: int | None, waiting_bytes: int) -> int:
        """How many bytes wait after it."""
        refusal = self.refusal(publish, alias)
        if refusal is None:
            packet = publish = self._dated(outgoing, publish)
            if alias is not None:
                known = self._aliases.get(alias) == publish.topic
                packet = structs.replace(
                    publish, topic="" if known else publish.topic, properties=structs.replace(publish.properties, topic_alias=alias)
                )
            frame = encode(packet, self._version)
            if len(frame) <= self._capabilities.packet_bytes_max:  # [MQTT5-3.2.2-15]
                if alias is not None:
                    self._aliases[alias] = publish.topic
                outgoing.left = True
                return self._send(packet, frame)
            refusal = ReasonCode.PACKET_TOO_LARGE, ""
        if self.sender.unacknowledged.get(publish.packet_id) is outgoing:
            self.sender.abandon(publish.packet_id)
        outgoing.reason = refusal[0]
        self._finish(outgoing, "refused")
        return waiting_bytes

    def batch_sent(self) -> None:
        """All bytes are the kernel's, and with them the QoS 0 messages among them are done."""
        done, self._batch = self._batch, []
        for outgoing in done:
            self._finish(outgoing, "acknowledged")

    def _finish(self, outgoing: Outgoing, outcome: Outcome) -> None:
        outgoing.outcome = outcome
        outgoing.done = True
        self._done(outgoing)

    # ---- acknowledgements --------------------------------------------------------------------------------------------

    def on_puback(self, packet_id: int, reason: ReasonCode = ReasonCode.SUCCESS) -> None:
        outgoing = self.sender.on_puback(packet_id)
        if outgoing is not None:
            outgoing.reason = reason
            self._finish(outgoing, "refused" if reason >= 0x80 else "acknowledged")

    def on_pubrec(self, packet_id: int, reason: ReasonCode = ReasonCode.SUCCESS) -> bytes:
        """The PUBREL to answer, if any."""
        failed = reason >= 0x80
        outgoing, known = self.sender.on_pubrec(packet_id, failed)
        if outgoing is not None:
            outgoing.reason = reason
            if failed:
                self._finish(outgoing, "refused")
            else:
                self._released[packet_id] = outgoing
        if not known:
            return acknowledgement(0x62, packet_id, ReasonCode.PACKET_IDENTIFIER_NOT_FOUND, self._version)
        return b"" if failed else acknowledgement(0x62, packet_id, ReasonCode.SUCCESS, self._version)  # [MQTT5-4.3.3-4]

    def on_pubcomp(self, packet_id: int) -> None:
        """Whatever its reason code says, the PUBREC has said that the message is the broker's."""
        if self.sender.on_pubcomp(packet_id):
            self._finish(self._released.pop(packet_id), "acknowledged")
