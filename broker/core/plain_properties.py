"""Which property sets of a PUBLISH go on to subscribers byte for byte: those of which nothing belongs to one hop.

Most publishers send the same few sets again and again, so what was said of one is kept, bounded, by its bytes. A set that is
malformed is not plain: the general way says what is wrong with it.
"""

from __future__ import annotations

from typing import Final

from broker.core.message import forwarded
from broker.errors import PeerError
from broker.wire.packets import PUBLISH
from broker.wire.properties import decode_properties

_KEPT_COUNT_MAX: Final = 256
_KEPT_BYTES_MAX: Final = 256
_plain: dict[bytes, bool] = {}
"""The newest sets, without their length; emptied when it is full."""


def plain_stop(data: bytes, position: int, stop: int, bytes_max: int) -> int:
    """Where the set ends whose length stands at `position`; 0 if it is not plain, longer than it may be, or not whole before `stop`."""
    length = data[position]
    start = position + 1
    if length >= 0x80:
        second = data[start] if start < stop else 0
        if second >= 0x80 or second == 0:
            return 0
        length = (length & 0x7F) | second << 7
        start += 1
    end = start + length
    if end > stop or length > _KEPT_BYTES_MAX or length > bytes_max:
        return 0
    section = data[start:end]
    plain = _plain.get(section)
    if plain is None:
        plain = _is_plain(data[position:end])
        if len(_plain) >= _KEPT_COUNT_MAX:
            _plain.clear()
        _plain[section] = plain
    return end if plain else 0


def _is_plain(encoded: bytes) -> bool:
    try:
        properties = decode_properties(encoded, 0, PUBLISH)[0]
    except PeerError:
        return False
    return forwarded(properties) is properties
