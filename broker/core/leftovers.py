"""What a verb leaves for its end: Wills to be published, and messages of a shared group whose member has gone.

Not at once, where they come up: to publish is to walk through the tables that the verb is about to change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.core.delivery import deliver
from broker.core.gates import gate
from broker.core.publish import publish

if TYPE_CHECKING:
    from broker.core.state import State


def finish(state: State, now: float) -> None:
    """As many as the budget allows; `tick` does the rest."""
    if not state.wills and not state.orphans:
        return
    work_max = state.limits.work_per_turn_max
    while state.wills and state.work < work_max:
        will, size = state.wills.popleft()
        state.waiting.will_bytes -= size
        state.work += 1
        state.publishes_wills = True
        publish(state, will, None, now)
        state.publishes_wills = False
    while state.orphans and state.work < work_max:
        group, message, client_id = state.orphans.popleft()
        member = group.choose(message.qos, message.topic)
        state.work += 1 + (group.steps_count >> 4)
        if message.expires_at <= now:  # [MQTT5-3.3.2-5]
            state.count_dropped(client_id, "expired")
        elif member is None:
            state.count_dropped(client_id, "session-ended")
        else:
            identifiers = (member.identifier,) if member.identifier else ()
            retain = message.retain and member.retain_as_published  # [MQTT5-3.3.1-13]
            link = member.session.link
            if state.journal is not None and link is not None:
                gate(state, link)  # until it is on disk that the other one is not to have it any more
            deliver(state, member.session, message, min(message.qos, member.qos), retain, identifiers, group, None, None, now)
