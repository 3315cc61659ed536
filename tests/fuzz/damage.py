"""Damages bytes as disks, networks, other people's code and enemies do; and makes texts of the worst characters."""

from __future__ import annotations

from random import Random

NASTY = ("", "\0", "\x1b[2J", "\ufeff", "\u202e", "\ud7ff", "\U0010ffff", "'", '"', "{", "::", "../", "\r\n", "💥" * 9)
LONG = (30_000, 70_000)
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def damaged(chance: Random, data: bytes, most: int = 4) -> bytes:
    """Return the data with up to `most` damages."""
    for _ in range(chance.randint(1, most)):
        data = chance.choice((_flip, _cut, _number, _repeat, _noise, _drop))(chance, data)
    return data


def text(chance: Random, long: bool = True) -> str:
    """Return a text, now and then a very long one."""
    if long and chance.random() < 0.02:
        return chance.choice("a \u0661é") * chance.randint(*LONG)
    return "".join(
        chance.choice(NASTY) if chance.random() < 0.15 else chr(chance.randint(32, 1000))
        for _ in range(chance.randint(0, 20))
    )


def value(chance: Random, depth: int = 0) -> object:
    """Return a JSON value of any type."""
    if chance.random() < 0.3 and depth < 4:
        count = chance.randint(0, 4)
        if chance.random() < 0.5:
            return [value(chance, depth + 1) for _ in range(count)]
        return {text(chance, long=False): value(chance, depth + 1) for _ in range(count)}
    return chance.choice(
        (None, True, False, 0, -1, 1 << 70, 0.5, float("nan"), float("inf"), text(chance), str(chance.randint(0, 9)))
    )


def _flip(chance: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        if changed:
            changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)


def _cut(chance: Random, data: bytes) -> bytes:
    return data[: chance.randint(0, len(data))]


def _number(chance: Random, data: bytes) -> bytes:
    """Put an extreme number over four bytes, most often near the start, where lengths and sizes are."""
    at = chance.randint(0, min(len(data), 200) if chance.random() < 0.7 else len(data))
    number = chance.choice(NUMBERS).to_bytes(4, chance.choice(("big", "little")))
    return data[:at] + number + data[at + 4 :]


def _repeat(chance: Random, data: bytes) -> bytes:
    start, end = sorted(chance.randint(0, len(data)) for _ in range(2))
    return data[:end] + data[start:end] * chance.randint(1, 3) + data[end:]


def _noise(chance: Random, data: bytes) -> bytes:
    at = chance.randint(0, len(data))
    return data[:at] + chance.randbytes(chance.randint(1, 40)) + data[at:]


def _drop(chance: Random, data: bytes) -> bytes:
    start, end = sorted(chance.randint(0, len(data)) for _ in range(2))
    return data[:start] + data[end:]
