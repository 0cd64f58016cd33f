"""Acknowledgements of four bytes, as many of one kind as stand in a row: what they come to in the tables of `inflight`, and their answers.

Each of the three ways below tries the same, in turn: are they those of a whole run, in its order? Else, are all of them known, and
ordinary? Else one by one, up to the first that is not; that one goes the general way. What is returned is how many were done.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, TypeVar

from broker.core.id_table import RUN_COUNT_MIN
from broker.core.packet_ids import PacketIds, packet_ids
from broker.core.runs import alike

if TYPE_CHECKING:
    from broker.core.session import Session

PUBACK: Final = 0x40
PUBREC: Final = 0x50
PUBREL: Final = 0x62
PUBCOMP: Final = 0x70

_ROW_BYTES_MIN: Final = 4 * RUN_COUNT_MIN

V = TypeVar("V")


def settle(session: Session, data: bytes, position: int, kind: int, answers: list[bytes]) -> int:
    """PUBACK or PUBREC."""
    sender = session.sender
    if sender.resend:
        return 0  # for whoever looks whether it was repeated
    unacknowledged = sender.unacknowledged
    qos = 1 if kind == PUBACK else 2
    if unacknowledged.runs is not None:
        run = unacknowledged.runs[0][1]
        ids = unacknowledged.take(kind, data, position) if run.qos == qos else None
        if ids is not None:
            _settled(session, ids, kind, run.size * ids.count, answers)
            return ids.count
    singles = unacknowledged.singles or unacknowledged.apart()
    stop = len(data)
    if stop - position >= _ROW_BYTES_MIN and data[position + _ROW_BYTES_MIN - 4] == kind:
        ids = _row(data, position, len(singles))
        stop = position + 4 * ids.count
        found = list(map(singles.get, ids.numbers))
        size = 0
        for waiting in found:
            if waiting is None or waiting.qos != qos:
                break
            size += waiting.size
        else:
            if ids.are_different():
                _remove(singles, ids.numbers)
                _settled(session, ids, kind, size, answers)
                return ids.count
    count = 0
    size = 0
    while count == 0 or (stop - position >= 4 and data[position] == kind and data[position + 1] == 2):
        packet_id = data[position + 2] << 8 | data[position + 3]
        waiting = singles.get(packet_id)
        if waiting is None or waiting.qos != qos:
            break
        del singles[packet_id]
        size += waiting.size
        if qos == 2:
            sender.released[packet_id] = True
            answers.append(b"\x62\x02" + data[position + 2 : position + 4])
        position += 4
        count += 1
    session.let_go(size)
    if qos == 1:
        sender.restore_quota(count)
    return count


def release(session: Session, data: bytes, position: int, answers: list[bytes]) -> int:
    """PUBREL."""
    held = session.receiver.held
    if held.runs is not None:
        ids = held.take(PUBREL, data, position)
        if ids is not None:
            answers.append(ids.acknowledgements(PUBCOMP))
            return ids.count
    singles = held.singles or held.apart()
    stop = len(data)
    if stop - position >= _ROW_BYTES_MIN and data[position + _ROW_BYTES_MIN - 4] == PUBREL:
        ids = _row(data, position, len(singles))
        if all(map(singles.__contains__, ids.numbers)) and ids.are_different():
            _remove(singles, ids.numbers)
            answers.append(ids.acknowledgements(PUBCOMP))
            return ids.count
        stop = position + 4 * ids.count
    count = 0
    while count == 0 or (stop - position >= 4 and data[position] == PUBREL and data[position + 1] == 2):
        packet_id = data[position + 2] << 8 | data[position + 3]
        if packet_id not in singles:
            break
        del singles[packet_id]
        answers.append(b"\x70\x02" + data[position + 2 : position + 4])
        position += 4
        count += 1
    return count


def complete(session: Session, data: bytes, position: int) -> int:
    """PUBCOMP."""
    sender = session.sender
    released = sender.released
    if released.runs is not None:
        ids = released.take(PUBCOMP, data, position)
        if ids is not None:
            sender.restore_quota(ids.count)
            return ids.count
    singles = released.singles or released.apart()
    stop = len(data)
    if stop - position >= _ROW_BYTES_MIN and data[position + _ROW_BYTES_MIN - 4] == PUBCOMP:
        ids = _row(data, position, len(singles))
        took_quota = list(map(singles.get, ids.numbers))
        if None not in took_quota and ids.are_different():
            _remove(singles, ids.numbers)
            sender.restore_quota(took_quota.count(True))
            return ids.count
        stop = position + 4 * ids.count
    count = 0
    restored = 0
    while count == 0 or (stop - position >= 4 and data[position] == PUBCOMP and data[position + 1] == 2):
        packet_id = data[position + 2] << 8 | data[position + 3]
        had_quota = singles.get(packet_id)
        if had_quota is None:
            break
        del singles[packet_id]
        if had_quota:
            restored += 1
        position += 4
        count += 1
    sender.restore_quota(restored)
    return count


def _row(data: bytes, position: int, count_max: int) -> PacketIds:
    """The ids of all that are of one kind, at most so many."""
    return packet_ids(data, position + 2, 4, alike(data, position, 4, 2, 0, 0, count_max))


def _settled(session: Session, ids: PacketIds, kind: int, size: int, answers: list[bytes]) -> None:
    """What was sent with these ids, `size` bytes in all, waits no more."""
    session.let_go(size)
    if kind == PUBACK:
        session.sender.restore_quota(ids.count)
    else:
        session.sender.released.add(ids, True)
        answers.append(ids.acknowledgements(PUBREL))


def _remove(singles: dict[int, V], numbers: Sequence[int]) -> None:
    """Different ones, all of which are there."""
    if len(numbers) == len(singles):
        singles.clear()
        return
    for packet_id in numbers:
        del singles[packet_id]
