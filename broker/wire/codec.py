"""Control Packets to bytes and back: the names that the rest of the house imports. The work is in `decoding` and `encoding`."""

from __future__ import annotations

from broker.wire.decoding import decode, decode_frame
from broker.wire.encoding import acknowledgement, encode, encode_within, publish_frame
from broker.wire.primitives import encode_string, encode_varint
from broker.wire.properties import encode_properties

__all__ = [
    "acknowledgement",
    "decode",
    "decode_frame",
    "encode",
    "encode_properties",
    "encode_string",
    "encode_varint",
    "encode_within",
    "publish_frame",
]
