"""The core's half of one Network Connection: what it knows of the peer, and what ends with the stream.

A link is made by `Engine.attach` and given up by `Engine.detach`; its session, if any, outlives it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from broker.core.inflight import PACKET_ID_MAX
from broker.core.outbox import Outbox
from broker.wire.framing import PACKET_BYTES_LARGEST, FrameDecoder
from broker.wire.packets import MQTT_5
from broker.words import named

if TYPE_CHECKING:
    from broker.core.access import Access
    from broker.core.allowance import Allowance
    from broker.core.auth import AuthRequest
    from broker.core.credit import Credit
    from broker.core.deadlines import Deadline
    from broker.core.limits import Limits
    from broker.core.rate import Rate
    from broker.core.session import Session
    from broker.core.topic_table import Route
    from broker.core.waiting import Account
    from broker.reasons import ReasonCode

# Phases of a link, in order.
AWAITING_CONNECT: Final = 0
AUTHENTICATING: Final = 1
CONNECTED: Final = 2
ENDED: Final = 3


class Link:
    __slots__ = (
        "access", "aliases_in", "aliases_out", "aliases_out_max", "allowance", "attached", "auth", "auth_deadline", "auth_method", "cause",
        "clear_bytes", "client_id", "closing", "credit", "deadline", "decoder", "error", "gate", "goes_on", "keep_alive_s", "known_topics",
        "last_received_at", "leaving", "limits", "listener", "mount_point", "outbox", "outbox_bytes_high", "packet_bytes_max", "passed",
        "passed_count", "passed_last", "passed_to", "passing_bytes_max", "paused", "paused_by", "pausing", "peer", "phase", "promised", "rate",
        "ready", "receive_maximum", "receiving_bytes", "refusal", "session", "taken_bytes", "transport", "unread", "username", "version",
    )  # fmt: skip

    def __init__(
        self,
        peer: str,
        listener: str,
        transport: object,
        allowance: Allowance,
        account: Account,
        access: Access,
        now: float,
        refusal: tuple[ReasonCode, str] | None = None,
        mount_point: str = "",
    ) -> None:
        self.peer = peer
        """Where it comes from, for people: "192.0.2.7:50123", "unix", "in-process"."""
        self.listener = listener
        self.transport = transport
        """The surroundings' own object; the core never looks into it."""
        self.access = access
        """What it may do; the listener's."""
        limits = allowance.limits
        self.allowance = allowance
        self.limits: Limits = limits
        """The listener's, and from CONNACK on its user's."""
        self.mount_point = mount_point
        """See `core.mount`; "" for none."""
        self.phase = AWAITING_CONNECT
        self.attached = True
        """False once the stream is gone."""
        self.closing = False
        """Send what is left, then close. Nothing that arrives is looked at any more."""
        self.ready = False
        """Named, or about to be named, by `take_ready`."""
        self.gate = 0
        """Number of the changes that have to be on disk before it is sent anything: see `core.gates`."""
        self.goes_on = False
        """It is to be named though its gate is closed: it may be read again, or has answered who asks it."""
        self.taken_bytes = 0
        """So many of all that it is sent depend on nothing newer than what is being written."""
        self.clear_bytes = 0
        """And so many on nothing that is not on disk, though its gate is closed."""
        self.cause = ""
        """Why it ended."""
        self.error = False
        """It did not end by a DISCONNECT 0x00 of the client."""
        self.version = 0
        """Protocol level; 0 while no CONNECT has said which."""
        self.client_id = ""
        self.username: str | None = None
        self.session: Session | None = None
        self.leaving: Session | None = None
        """The session that ended with this link, while the peer, which has only closed its sending side, is still sent what it was owed."""
        self.auth: AuthRequest | None = None
        self.auth_method: str | None = None
        self.auth_deadline: Deadline | None = None
        """When what it showed of itself holds no longer."""
        self.refusal = refusal
        """It came to be told this, and why, as the answer to its CONNECT."""
        self.rate: Rate | None = None
        """How fast it may send, if that is bounded."""
        self.keep_alive_s = 0.0
        self.deadline: Deadline | None = None
        """The connect timeout, then the keepalive."""
        self.last_received_at = now
        self.decoder = FrameDecoder(limits.packet_bytes_max)
        self.receiving_bytes = 0
        """So much of it, and of what `rate` holds back, is in the account."""
        self.outbox = Outbox(account)
        self.outbox_bytes_high = allowance.outbox_bytes_high
        self.promised = limits
        """The limits that its CONNACK told of: what they allow stays allowed, though the broker's own change."""
        self.packet_bytes_max = PACKET_BYTES_LARGEST
        """The client's Maximum Packet Size."""
        self.receive_maximum = PACKET_ID_MAX
        """The client's, of what we send."""
        self.passing_bytes_max = 0
        """Its outbox has to stay below this with a QoS 0 frame that is passed to it as it came: below the high mark, and what its client
        takes. 0 if it is sent aliases."""
        self.aliases_in: dict[int, str] | None = None
        self.aliases_out: dict[str, int] | None = None
        self.aliases_out_max = 0
        self.known_topics: dict[bytes, Route] = {}
        """Topic bytes, as they stand in a PUBLISH, to the route; that it stands here says: valid, permitted."""
        self.passed: set[bytes] | None = None
        """Topics that came lately by themselves and are not known: see `core.first`."""
        self.passed_count = 0
        """So many messages on unknown topics were passed on in a row the last time, or in one block of them."""
        self.passed_last = ""
        """The last topic that came and was not known."""
        self.passed_to: str | None = None
        """The Client Identifier of who got what came on them; "" if there were several."""
        self.paused = False
        """Do not read it."""
        self.unread = False
        """The surroundings do not, for the disk is behind."""
        self.paused_by: set[Link] | None = None
        self.pausing: dict[Link, bool] | None = None
        """The publishers that wait for this link; True: nobody else gets what that one sends."""
        self.credit: Credit | None = None
        """What it pauses them on; all of it, while there is none."""

    @property
    def connected(self) -> bool:
        """Was it accepted with CONNACK 0x00, and is it still served?"""
        return self.phase == CONNECTED

    @property
    def has_spoken_ahead(self) -> bool:
        """Is something kept that it has sent while it is asked who it is? (Where it takes part in that, nothing else may come before the answer.)"""
        return self.phase == AUTHENTICATING and self.auth_method is None and self.decoder.buffered_bytes > 0

    @property
    def is_mqtt_5(self) -> bool:
        return self.version >= MQTT_5

    @property
    def inflight_count_max(self) -> int:
        """So many messages at QoS 1 and 2 may be under way to it."""
        return min(self.receive_maximum, self.promised.inflight_count_max)

    @property
    def held_count_max(self) -> int:
        """And so many at QoS 2 from it. 3.1.1 has no Receive Maximum."""
        return self.promised.receive_maximum if self.version >= MQTT_5 else PACKET_ID_MAX

    def describe(self) -> str:
        """For log lines: the client and where it is."""
        return f"{named(self.client_id)!r} ({self.peer})" if self.client_id else f"({self.peer})"
