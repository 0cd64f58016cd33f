"""The DISCONNECTs of a client: what may be said with ours, and what the broker's says for people."""

from __future__ import annotations

from broker.core.client_state import ClientOptions
from broker.errors import NotSupported
from broker.reasons import CLIENT_DISCONNECT_CODES, ReasonCode
from broker.wire.codec import encode, encode_within
from broker.wire.packets import MQTT_5, NO_PROPERTIES, Disconnect, Properties
from broker.words import printable


class ClientGoodbye:
    __slots__ = ("_asked_expiry_s", "_version", "properties")

    def __init__(self, options: ClientOptions) -> None:
        given = options.connect_properties.session_expiry_interval
        self._asked_expiry_s = options.session_expiry_s if given is None else given
        """The Session Expiry Interval of our CONNECT."""
        self._version = options.version
        self.properties = options.disconnect_properties
        """Said with the one that ends it all in good order (0x00 or 0x04); put there after `check`."""

    def check(self, properties: Properties) -> None:
        """NotSupported before 5.0; ValueError for what cannot be said, and for a Session Expiry Interval that may not."""
        if properties is not NO_PROPERTIES and self._version < MQTT_5:
            raise NotSupported("properties of DISCONNECT need MQTT 5.0")
        encode(Disconnect(ReasonCode.SUCCESS, properties), self._version)
        if properties.session_expiry_interval and not self._asked_expiry_s:  # [MQTT5-3.14.2-2]
            raise ValueError(
                "a session that was to end with its connection cannot be kept by its DISCONNECT: say so with session_expiry_s to connect"
            )

    def packet(self, reason: ReasonCode, packet_bytes_max: int) -> tuple[Disconnect, bytes] | None:
        """And its bytes. None: silence. 3.1.1 has no reasons, and any DISCONNECT there discards the Will: 0x04 is silence [MQTT311-3.14.4-3]."""
        if self._version < MQTT_5 and reason != ReasonCode.SUCCESS:
            return None
        packet = Disconnect(reason, self.properties if reason < 0x80 else NO_PROPERTIES)
        # What the broker cannot take is left out: the goodbye itself matters more [MQTT5-3.14.2-3, -4].
        frame = encode_within(packet, self._version, packet_bytes_max)
        return None if frame is None else (packet, frame)


def fault_of(reason: ReasonCode) -> Disconnect:
    """For a fault of the broker's; not every reason is a client's to say."""
    return Disconnect(reason if reason in CLIENT_DISCONNECT_CODES else ReasonCode.PROTOCOL_ERROR)


def explanation(properties: Properties) -> str | None:
    """What the broker said beside its reason code, on one line: why, and where to go instead (4.11)."""
    parts = (properties.reason_string, properties.server_reference and f"the server to use is {properties.server_reference}")
    return printable("; ".join(part for part in parts if part)) or None
