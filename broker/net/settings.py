"""What an open broker wants to know of a configuration, and what a type cannot say of the limits in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, Protocol

from broker.auth.acl import May
from broker.auth.bans import Ban
from broker.auth.tokens import Jwt
from broker.core.allowance import UserLimits
from broker.core.limits import OF_ALL, OF_STRANGERS, OUTBOX_BYTES_HIGH_MIN, Limits
from broker.net.listener import Listener
from broker.wire.framing import PACKET_BYTES_LARGEST


class OverflowRule(Protocol):
    @property
    def filter(self) -> str: ...
    @property
    def rule(self) -> str: ...


class AccessRule(Protocol):
    @property
    def user(self) -> str | None: ...
    @property
    def topic(self) -> str: ...
    @property
    def may(self) -> May: ...


class LogSettings(Protocol):
    @property
    def level(self) -> str: ...
    @property
    def format(self) -> str: ...
    @property
    def target(self) -> str: ...
    @property
    def connections(self) -> bool: ...


class StoreSettings(Protocol):
    @property
    def path(self) -> str | None: ...


class Settings(Protocol):
    """`broker.config.Config` is one; rooms below it need not know that."""

    @property
    def listeners(self) -> Sequence[Listener]: ...
    @property
    def limits(self) -> Limits: ...
    @property
    def limits_for(self) -> UserLimits: ...
    @property
    def log(self) -> LogSettings: ...
    @property
    def store(self) -> StoreSettings: ...
    @property
    def bridges(self) -> Sequence[Any]:
        """`broker.bridge.settings.Bridge`, of a room above."""

    @property
    def overflow(self) -> Sequence[OverflowRule]: ...
    @property
    def allow_anonymous(self) -> bool | None: ...
    @property
    def password_file(self) -> str | None: ...
    @property
    def acl_file(self) -> str | None: ...
    @property
    def jwt(self) -> Jwt | None: ...
    @property
    def banned(self) -> Sequence[Ban]: ...
    @property
    def client_ids(self) -> Sequence[str] | None: ...
    @property
    def username_as_client_id(self) -> bool: ...
    @property
    def access(self) -> Sequence[AccessRule]: ...
    @property
    def shutdown_grace_s(self) -> float: ...
    @property
    def sys_interval_s(self) -> float: ...


WHOLE_BROKER: Final = "holds for the whole broker: it belongs to [limits]"
BEFORE_CONNECT: Final = "holds before anybody knows whose client it is: it belongs to [limits] or [listeners.limits]"

SECONDS_MOST: Final = 1_000_000_000
"""Of anything that is waited for: half a lifetime, and an end."""
WHOLE_MOST: Final = 1 << 53
"""Of whole numbers: what is worked out from them, and shown of them, may be a float."""

SHOWN_MOST: Final = 1 << 64

# name: (least, most); all others are 0 to `WHOLE_MOST`. What would serve nobody is a mistake, and no limit.
RANGES: Final[dict[str, tuple[float, float]]] = {
    "keepalive_s_max": (1, 65_535),
    "packet_bytes_max": (128, PACKET_BYTES_LARGEST),
    "control_bytes_max": (128, PACKET_BYTES_LARGEST),
    "client_id_bytes_max": (1, 65_535),
    "inflight_count_max": (1, 65_535),
    "inflight_bytes_max": (1, WHOLE_MOST),  # at 0 nothing of QoS 1 or 2 would ever be sent
    "receive_maximum": (1, 65_535),
    "topic_alias_maximum": (0, 65_535),
    "maximum_qos": (0, 2),
    "session_expiry_s_max": (0, 4_294_967_295),
    "outbox_bytes_high": (OUTBOX_BYTES_HIGH_MIN, WHOLE_MOST),
    "memory_bytes_max": (OUTBOX_BYTES_HIGH_MIN << 4, WHOLE_MOST),  # of which one outbox may have a sixteenth
    "sessions_count_max": (1, WHOLE_MOST),
    "retained_replays_count_max": (1, WHOLE_MOST),  # at 0 no SUBSCRIBE is granted
    "connect_timeout_s": (0.001, SECONDS_MOST),
    "close_timeout_s": (0.001, SECONDS_MOST),
    "slow_subscriber_grace_s": (0, SECONDS_MOST),
    "filter_levels_max": (1, 65_535),
    "work_per_turn_max": (1, WHOLE_MOST),
    "routes_count_max": (1, WHOLE_MOST),
    "publish_per_s_max": (0, 1_000_000_000),  # what is no bound is 0
    "receive_bytes_per_s_max": (0, 1_000_000_000_000),
    "connects_per_address_per_s_max": (0, 1_000_000_000),
    "connects_per_client_id_per_s_max": (0, 1_000_000_000),
    "connects_per_address_burst_max": (1, WHOLE_MOST),
    "connects_per_client_id_burst_max": (1, WHOLE_MOST),
}
# Of the keys above the first [table]. More often than that, $SYS would be most of what the broker does.
SHUTDOWN_GRACE_S: Final = (0, SECONDS_MOST)
SYS_INTERVAL_S: Final = (0.1, SECONDS_MOST)


def range_fault(value: float, least: float, most: float) -> str | None:
    """What was expected instead; None if it is one of these. An upper end that nobody would come near is told to those only who are above it."""
    if least <= value <= most:
        return None
    wanted = f"{least:,} or more" if value < least and most >= SECONDS_MOST else f"{least:,} to {most:,}"
    return f"expected {wanted}, got {'far more' if SHOWN_MOST < value < math.inf else f'{value:,}'}"


def limit_faults(limits: Limits, place: str = "limits", names: Sequence[str] = Limits.__struct_fields__) -> list[tuple[str, str]]:
    """(key path, what was expected) of every limit that makes no sense. names: those that are written at that place."""
    found = []
    for name in names:
        value = getattr(limits, name)
        default = getattr(Limits(), name)
        if isinstance(default, bool):
            if not isinstance(value, bool):
                found.append((f"{place}.{name}", f"expected true or false, got {value!r}"))
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            found.append((f"{place}.{name}", f"expected a number, got {value!r}"))
            continue
        if isinstance(default, int) and isinstance(value, float):
            found.append((f"{place}.{name}", f"expected a whole number, got {value!r}"))
            continue
        fault = range_fault(value, *RANGES.get(name, (0, WHOLE_MOST)))
        if fault is not None:
            found.append((f"{place}.{name}", fault))
    if not found and not {"outbox_bytes_max", "outbox_bytes_high"}.isdisjoint(names) and limits.outbox_bytes_max < limits.outbox_bytes_high:
        found.append(
            (f"{place}.outbox_bytes_max", f"expected at least outbox_bytes_high ({limits.outbox_bytes_high:,}), got {limits.outbox_bytes_max:,}")
        )
    return found


def override_faults(limits: Limits, listeners: Sequence[Listener], users: UserLimits) -> list[tuple[str, str]]:
    """The same of what listeners and users have of their own, over these limits."""
    found = []
    for index, listener in enumerate(listeners):
        place, own = f"listeners[{index}].limits", listener.limits
        found += [(f"{place}.{name}", WHOLE_BROKER) for name in own.names if name in OF_ALL]
        found += limit_faults(own.over(limits), place, own.names)
    for index, (name, own) in enumerate(users):
        place = f"limits_for {name!r}"
        if name in [other for other, _ in users[:index]]:
            found.append((place, "this user has limits already"))
        found += [(f"{place}.{key}", WHOLE_BROKER if key in OF_ALL else BEFORE_CONNECT) for key in own.names if key in OF_ALL | OF_STRANGERS]
        found += limit_faults(own.over(limits), place, own.names)
    return found
