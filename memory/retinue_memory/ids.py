"""New ids: UUIDs of version 7 (RFC 9562).

They start with the time, so rows inserted one after another are neighbours in an index and a commit of many rows writes few
of its pages.
"""

from __future__ import annotations

import os
import time


def new_hex_id() -> str:
    """A new id as 32 hexadecimal digits."""
    number = time.time_ns() // 1_000_000 << 80 | int.from_bytes(os.urandom(10), "big")
    number = number & ~(0xF << 76 | 0x3 << 62) | 0x7 << 76 | 0x2 << 62  # the version and the variant
    return f"{number:032x}"


def new_id() -> str:
    """A new id in the form 8-4-4-4-12."""
    digits = new_hex_id()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
