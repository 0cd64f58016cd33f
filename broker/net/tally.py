"""How often clients came, were refused and were lost: counted where the log is told of it, which no message passes."""

from __future__ import annotations

from typing import Final

from broker.reasons import CONNACK_CODES, ReasonCode

NO_CONNECT: Final = "no-connect"
_NAMES: Final = {code: ReasonCode(code).name.lower().replace("_", "-") for code in sorted(CONNACK_CODES) if code >= 0x80}
REFUSALS: Final = (NO_CONNECT, *_NAMES.values())
"""Why a client was not let in: what its CONNACK said, or that it sent no CONNECT that could be understood."""


class Tally:
    """Counters since the start."""

    __slots__ = ("connects_count", "lost_count", "refused", "violations_count")

    def __init__(self) -> None:
        self.connects_count = 0
        self.lost_count = 0
        self.violations_count = 0
        self.refused: dict[str, int] = {}

    def refuse(self, reason: ReasonCode | None) -> None:
        """None: it has sent no CONNECT. A hook may say what is no reason for a CONNACK; then the client hears nothing."""
        name = NO_CONNECT if reason is None else _NAMES.get(reason, _NAMES[ReasonCode.UNSPECIFIED_ERROR])
        self.refused[name] = self.refused.get(name, 0) + 1

    def statistics(self) -> dict[str, int | float]:
        found: dict[str, int | float] = {
            "connects_count": self.connects_count,
            "clients_lost_count": self.lost_count,
            "violations_count": self.violations_count,
        }
        found |= {f"connects_refused_{name.replace('-', '_')}": count for name, count in self.refused.items()}
        return found
