"""Seeds derived from names and numbers, so that every random stream is a pure function of (seed, purpose, step)."""

import hashlib
import random


def derive_seed(*parts: object) -> int:
    """Returns a 63-bit seed from any printable parts, the same in every process and on every machine."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*parts: object) -> random.Random:
    """Returns a `random.Random` for the random stream that `parts` name."""
    return random.Random(derive_seed(*parts))
