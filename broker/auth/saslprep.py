"""SASLprep (RFC 4013): one form for what people type in many, so that a password is the same from every keyboard."""

from __future__ import annotations

import stringprep
from typing import Final
from unicodedata import ucd_3_2_0

_PROHIBITED: Final = (
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
)


def saslprep(text: str) -> str:
    """Code points that Unicode 3.2 does not have are left as they are, as in a query. ValueError for what must not occur, without repeating it."""
    mapped = "".join(" " if stringprep.in_table_c12(one) else one for one in text if not stringprep.in_table_b1(one))
    prepared: str = ucd_3_2_0.normalize("NFKC", mapped)
    for one in prepared:
        if any(is_prohibited(one) for is_prohibited in _PROHIBITED):
            raise ValueError(f"has a character that SASLprep forbids (U+{ord(one):04X})")
    if any(map(stringprep.in_table_d1, prepared)) and (
        any(map(stringprep.in_table_d2, prepared)) or not (stringprep.in_table_d1(prepared[0]) and stringprep.in_table_d1(prepared[-1]))
    ):
        raise ValueError("mixes characters written from right to left with others in a way that SASLprep forbids")
    return prepared
