"""Limits that have changed while clients are connected: what their CONNACK said stays, and the rest holds from now on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.core import pausing
from broker.core.connect import follow_limits
from broker.core.link import CONNECTED
from broker.core.turns import share_out

if TYPE_CHECKING:
    from broker.core.allowance import UserLimits
    from broker.core.limits import Limits
    from broker.core.state import State


def use_limits(state: State, limits: Limits, users: UserLimits, now: float) -> None:
    state.limits = limits
    share_out(state, now)
    state.topics.keep_routes(limits.routes_count_max)
    state.allowance.use(limits, users)
    for link in state.links:
        levels_max = link.limits.filter_levels_max
        link.limits = link.allowance.of(link.username if link.phase == CONNECTED else None)
        if link.limits.filter_levels_max < levels_max:
            link.known_topics = {}
        if link.phase == CONNECTED:
            follow_limits(link, now)
            if link.rate is not None and link.rate.deadline is not None:
                pausing.hold_up_anew(state, link, link.rate, now)
