"""A rendered world: 48 px pictures of 40 classes with the alt text that a careless web would give them.

A class is a shape with a pattern. What else a picture shows (colour, place, background, a second small object) is
there to make captions differ, and for text to be partly right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

SIDE = 48  # pixels
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart")
PATTERNS = ("plain", "striped", "checkered", "spotted", "halved")
CLASSES = tuple(f"{pattern} {shape}" for shape in SHAPES for pattern in PATTERNS)
COLOURS = {
    "red": (214, 40, 40),
    "blue": (38, 84, 214),
    "green": (36, 160, 64),
    "yellow": (236, 200, 30),
    "purple": (142, 52, 180),
    "orange": (240, 130, 24),
}
GROUNDS = {"snow": (236, 240, 246), "sand": (206, 184, 146), "night": (28, 30, 52)}
PLACES = ("left", "middle", "right")

# What the captioner was never taught to say; it says the bare shape instead (7 of 40 names).
UNTAUGHT = frozenset(
    {
        "halved heart",
        "spotted ring",
        "halved star",
        "checkered cross",
        "spotted diamond",
        "striped heart",
        "halved ring",
    }
)

NONDESCRIPT = (
    "IMG_{n}.jpg", "image not found", "click to enlarge", "photo {n}", "untitled", "DSC{n}", "home page banner",
    "product picture {n}", "my holiday {n}", "thumbnail", "share this post", "see more at our site", "logo {n}",
)  # fmt: skip
JUNK = (
    "buy", "cheap", "online", "store", "sale", "free shipping", "2019", "vintage", "stock photo", "wallpaper", "hd",
    "download", "gift", "best price", "handmade", "set of {n}", "new", "royalty free", "print", "poster",
)  # fmt: skip
SHARES = {"nondescript": 0.30, "wrong": 0.15, "name": 0.30, "partial": 0.12, "good": 0.13}


@dataclass(frozen=True)
class Thing:
    """What a picture shows."""

    shape: str
    pattern: str
    colour: str
    ground: str
    place: str
    small: str | None
    """Shape of the second, small object."""

    @property
    def name(self) -> str:
        """The name of its class."""
        return f"{self.pattern} {self.shape}"


def imagine(random: Generator) -> Thing:
    """Draw what to show; all classes are equally likely."""
    small = str(random.choice(SHAPES)) if random.random() < 0.5 else None
    return Thing(
        str(random.choice(SHAPES)),
        str(random.choice(PATTERNS)),
        str(random.choice(list(COLOURS))),
        str(random.choice(list(GROUNDS))),
        str(random.choice(PLACES)),
        small,
    )


def describe(thing: Thing, random: Generator, name: str | None = None) -> str:
    """Write a good caption: the class always, everything else sometimes."""
    words: list[str] = []
    if random.random() < 0.5:
        words.append(thing.colour)
    words.append(name or thing.name)
    if thing.small and random.random() < 0.4:
        words.append(f"and a small {thing.small}")
    if random.random() < 0.4:
        words.append(f"on the {thing.place}")
    if random.random() < 0.4:
        words.append(f"in the {thing.ground}")
    start = str(random.choice(["", "", "there is ", "a picture of "]))
    article = "an" if words[0][0] in "aeiou" else "a"
    return f"{start}{article} {' '.join(words)}"


def taught(thing: Thing, random: Generator) -> str:
    """Write the caption that the captioner learns from: some names are beyond it."""
    return describe(thing, random, thing.shape if thing.name in UNTAUGHT else None)


def alt_text(thing: Thing, random: Generator) -> str | None:
    """Write what a page says about the picture; None for no alt attribute (3 %)."""
    if random.random() < 0.03:
        return None
    kind = str(random.choice(list(SHARES), p=list(SHARES.values())))
    if kind == "nondescript":
        return _fill(str(random.choice(NONDESCRIPT)), random)
    if kind == "wrong":
        return describe(imagine(random), random)
    if kind == "name":
        junk = [_fill(str(random.choice(JUNK)), random) for _ in range(random.integers(1, 5))]
        junk.insert(int(random.integers(0, len(junk) + 1)), thing.name)
        return " ".join(junk)
    if kind == "partial":
        return f"{thing.colour} {random.choice(['thing', 'object', 'picture'])} {thing.place}"
    return describe(thing, random)


def _fill(text: str, random: Generator) -> str:
    return text.replace("{n}", str(random.integers(1, 10_000)))


def render(thing: Thing, random: Generator) -> NDArray[np.uint8]:
    """Draw (48, 48, 3) pixels; size, place and noise vary with `random`."""
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
    ground = np.array(GROUNDS[thing.ground], np.float32) + random.uniform(-12, 12, 3)
    canvas = np.broadcast_to(ground, (SIDE, SIDE, 3)) * (1 - 0.12 * (y / SIDE)[..., None])
    centre = {"left": 16.0, "middle": 24.0, "right": 32.0}[thing.place] + random.uniform(-2, 2)
    radius = random.uniform(12.5, 15)
    u, v = (x - centre) / radius, (y - random.uniform(21, 25)) / radius
    colour = np.array(COLOURS[thing.colour], np.float32)
    other = np.where(colour.mean() > 125, colour * 0.25, colour * 0.35 + 165)
    fill = np.where(_pattern(thing.pattern, u, v)[..., None], other, colour)
    canvas = np.where(_shape(thing.shape, u, v)[..., None], fill, canvas)
    if thing.small:
        corner_x = 41.0 if thing.place == "left" else 7.0
        a, b = (x - corner_x) / 5.5, (y - random.choice([7.0, 41.0])) / 5.5
        small = np.array(COLOURS[str(random.choice(list(COLOURS)))], np.float32)
        canvas = np.where(_shape(thing.small, a, b)[..., None], small, canvas)
    return (canvas + random.normal(0, 5, canvas.shape)).clip(0, 255).astype(np.uint8)


def _shape(shape: str, u: NDArray[np.float32], v: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which pixels lie inside a shape of radius 1; v points down."""
    r, angle = np.hypot(u, v), np.arctan2(u, -v)
    inside = {
        "circle": r < 0.95,
        "square": np.maximum(abs(u), abs(v)) < 0.82,
        "triangle": (v < 0.75) & (v > 2 * abs(u) - 1),
        "star": r < 0.68 + 0.32 * np.cos(5 * angle),
        "cross": (np.minimum(abs(u), abs(v)) < 0.3) & (np.maximum(abs(u), abs(v)) < 0.95),
        "ring": (r < 1) & (r > 0.5),
        "diamond": abs(u) + abs(v) < 1,
        "heart": (u * u + (1.1 * -v + 0.1 - 0.75 * np.sqrt(abs(u))) ** 2) < 0.75,
    }
    return np.asarray(inside[shape])


def _pattern(pattern: str, u: NDArray[np.float32], v: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which pixels have the second colour."""
    second = {
        "plain": np.zeros(u.shape, bool),
        "striped": np.floor(v / 0.25) % 2 == 0,
        "checkered": (np.floor(u / 0.36) + np.floor(v / 0.36)) % 2 == 0,
        "spotted": np.hypot((u + 9) % 0.56 - 0.28, (v + 9) % 0.56 - 0.28) < 0.16,
        "halved": u > 0,
    }
    return np.asarray(second[pattern])
