"""What our CONNECT says: the options of the client, the low-level ones put over the rest."""

from __future__ import annotations

from msgspec import structs

from broker.core.client_state import ClientOptions
from broker.wire.packets import MQTT_5, NO_PROPERTIES, Connect, Properties


def connect_packet(options: ClientOptions, client_id: str, clean_start: bool, auth_data: bytes | None = None) -> Connect:
    """client_id: the broker's, once it has assigned one. auth_data: what enhanced authentication says first."""
    properties = NO_PROPERTIES
    if options.version >= MQTT_5:
        properties = Properties(
            session_expiry_interval=options.session_expiry_s or None,
            receive_maximum=options.receive_maximum if options.receive_maximum != 65_535 else None,
            maximum_packet_size=options.packet_bytes_max,
            topic_alias_maximum=options.topic_alias_maximum or None,
            request_response_information=1,
            user_properties=options.user_properties,
        )
        given = {name: value for name, value in structs.asdict(options.connect_properties).items() if value not in (None, ())}
        if auth_data is not None:
            given["authentication_data"] = auth_data
        properties = structs.replace(properties, **given)
    return Connect(
        client_id=client_id,
        version=options.version,
        clean_start=clean_start,
        keep_alive_s=options.keep_alive_s,
        will=options.will,
        username=options.username,
        password=options.password,
        properties=properties,
    )
