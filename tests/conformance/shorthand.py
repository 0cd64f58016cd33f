"""Reason codes as the numbers that the standard prints."""

from __future__ import annotations

from broker.reasons import ReasonCode


def codes(*values: int) -> tuple[ReasonCode, ...]:
    return tuple(ReasonCode(value) for value in values)
