"""The hot path of QoS 1 and 2: acknowledgements of four bytes, and runs of PUBLISH on known topics, straight from what was read.

The tables are those of `inflight`, the rules those of `publish`; this is what they come to when nothing is out of the
ordinary. Anything else stays at the decoder's position and goes the general way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from broker.core.acknowledging import PUBACK, PUBCOMP, PUBREC, PUBREL, complete, release, settle
from broker.core.gates import note
from broker.core.link import CONNECTED
from broker.core.publish_run import publish_run
from broker.core.pumping import pump

if TYPE_CHECKING:
    from broker.core.link import Link
    from broker.core.session import Session
    from broker.core.state import State

_PUBLISH_QOS_1: Final = 0x32
_PUBLISH_QOS_2: Final = 0x34


def exchange(state: State, link: Link, session: Session, now: float) -> bool:
    """Do what stands at the decoder's position and is ordinary; the rest stays there. False: paused, closed or the budget is used up."""
    decoder = link.decoder
    data = decoder.data
    end = len(data)
    position = decoder.position
    if position >= end or data[position] not in (PUBACK, PUBREC, PUBREL, PUBCOMP, _PUBLISH_QOS_1, _PUBLISH_QOS_2):
        return True
    answers: list[bytes] = []
    answers_count = 0
    acknowledged = 0
    received = 0
    go_on = True
    work_max = state.work_max
    while end - position >= 4:
        first = data[position]
        if first in (_PUBLISH_QOS_1, _PUBLISH_QOS_2):
            count = publish_run(state, link, session, data, position, first, answers, now)
            if count == 0:
                break
            position = decoder.position
            received += count
            answers_count += count
            if link.paused or link.closing or state.work >= work_max:
                go_on = False
                break
            continue
        if data[position + 1] != 2:
            break
        if first == PUBACK:
            count = settle(session, data, position, first, answers)
        elif first == PUBREC:
            count = settle(session, data, position, first, answers)
            answers_count += count
        elif first == PUBREL:
            count = release(session, data, position, answers)
            answers_count += count
        elif first == PUBCOMP:
            count = complete(session, data, position)
        else:
            break
        if count == 0:
            break
        position += 4 * count
        acknowledged += count
        state.work += 2 + count // 8
        if state.work >= work_max:
            go_on = False
            break
    decoder.position = position
    counters = state.counters
    counters.packets_received += acknowledged + received
    counters.publish_received += received
    if (acknowledged or received) and session.record is not None:
        note(state, session)
    if answers and link.phase == CONNECTED:  # nothing after a DISCONNECT [MQTT5-3.14.4-1]
        counters.packets_sent += answers_count
        link.outbox.append(answers[0] if len(answers) == 1 else b"".join(answers))
        state.mark_ready(link)
    if acknowledged and (session.queue.count or session.replays or session.sender.resend):
        pump(state, link, now)
    return go_on
