"""Every strategy file selects what the paper or DataComp says: by hand on a small pool, in plain Python on a random."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import pytest

import components.stages.mix
from components.pool.columns import ALL
from components.recipe.mixtures import Mixture
from components.recipe.recipe import Spec, load_recipe
from components.selection.demand import demand_part, expected_share
from tests.components.selection.mixing import Sample, best_share, ours

FOLDER = Path(components.stages.mix.__file__).parent / "strategies"
FILES = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}

# Sorted by the raw text's cosine; the best 30 % of 11 are 0 to 3 by raw (0.35 and above) and 1, 4, 7, 8 by BLIP-2
# (0.48), whose best 50 % reach down to 0.36 and whose best 75 % to 0.20. 10 has no raw text, 11 no caption.
TABLE = """
 number  raw   blip2  in1k
      0  0.50  0.20   yes
      1  0.45  0.48   no
      2  0.40  0.10   yes
      3  0.35  0.36   no
      4  0.30  0.60   yes
      5  0.25  0.35   no
      6  0.20  0.34   yes
      7  0.15  0.55   no
      8  0.10  0.52   yes
      9  0.05  0.05   no
     10  -     0.40   yes
     11  0.02  -      yes
"""


def small_pool() -> list[Sample]:
    pool = []
    for line in TABLE.strip().splitlines()[1:]:
        number, raw, blip2, in1k = line.split()
        scores = {name: float(cell) for name, cell in (("raw", raw), ("blip2", blip2)) if cell != "-"}
        texts = {name: f"{name} of {number}" for name in scores}
        others = {"blip": f"blip of {number}"} if number != "10" else {}
        passes = dict.fromkeys(("basic", "english", "in21k"), number in ("0", "4", "5", "10"))
        pool.append(Sample(int(number), texts | others, scores, {"in1k": in1k == "yes", **passes}))
    return pool


# What a mixture of a file selects of that pool: r3 is image 3 with its raw text, b3 with BLIP-2's, rb3 with both.
BY_HAND = {
    "no-filter/raw": "r0 r1 r2 r3 r4 r5 r6 r7 r8 r9 r11",
    "basic-filter/basic": "r0 r4 r5",
    "text-based/text-based": "r0 r4 r5",
    "image-based/image-based": "r0 r2 r4 r6 r8 r11",
    "laion2b/laion2b": "r0 r4",
    "raw-top/raw30": "r0 r1 r2 r3",
    "raw-top-in1k/raw30-in1k": "r0 r2",
    "blip2/blip2": "b0 b1 b2 b3 b4 b5 b6 b7 b8 b9 b10",
    "blip2-top/blip2-50": "b1 b3 b4 b7 b8 b10",
    "blip2-top-in1k/blip2-75-in1k": "b0 b4 b6 b8 b10",
    "blip2-on-raw-top/blip2-on-raw30": "b0 b1 b2 b3",
    "raw-top-plus-blip2-rest/raw30-blip2-rest": "r0 r1 r2 r3 b4 b5 b6 b7 b8 b9 b10",
    "raw-top-plus-blip2-filtered/raw30-blip2": "r0 r1 r2 r3 b4 b5 b7 b8 b10",  # 5 has the very threshold
    "raw-top-plus-blip2-filtered-in1k/raw30-blip2-in1k": "r0 r2 b4 b8 b10",
    "blip2-top-plus-raw-filtered/blip2-50-raw": "r0 b1 r2 b3 b4 b7 b8 b10",
    "concat-top-plus-blip2-filtered/concat30-blip2": "rb0 rb1 rb2 rb3 b4 b5 b7 b8 b10",
    "raw-top-and-blip2-top/raw30-and-blip2-30": "r0 r1 b1 r2 r3 b4 b7 b8",
    "laion-coco/blip2-028": "b1 b3 b4 b5 b6 b7 b8 b10",
    "laion-coco/raw-028": "r1 r3 r4 r5 r6 r7 r8",
}


@pytest.mark.parametrize("which", BY_HAND)
def test_by_hand(which: str) -> None:
    file, name = which.split("/")
    short = {"raw": "r", "blip2": "b", "raw+blip2": "rb"}
    found = ours(mixture_of(file, name), small_pool())
    assert " ".join(f"{short[source]}{number}" for number, _, _, source in found) == BY_HAND[which]
    joined = {s: " ".join(f"{t} of {{0}}" for t in s.split("+")) for s in short}
    assert all(text == joined[source].format(number) for number, _, text, source in found)


# The same in words of Python, for pools of any size. A strategy says what an image gets: the sources of its pairs.
Choice = Callable[[Sample, float, Callable[[str, float], float]], Sequence[str]]


def score(sample: Sample, name: str) -> float:
    return sample.scores.get(name, -9.0)


def plain(*wanted: str) -> Choice:
    """Text and the flag that lets it in."""
    return lambda s, x, best: [wanted[0]] if all(s.flags[f] for f in wanted[1:]) else []


def raw_top(s: Sample, x: float, best: Callable[[str, float], float]) -> Sequence[str]:
    return ["raw"] if score(s, "raw") >= best("raw", x) else []


def blip2_top(s: Sample, x: float, best: Callable[[str, float], float]) -> Sequence[str]:
    return ["blip2"] if score(s, "blip2") >= best("blip2", x) else []


def raw_top_plus_filtered(s: Sample, x: float, best: Callable[[str, float], float]) -> Sequence[str]:
    threshold = best("raw", x)
    return ["raw"] if score(s, "raw") >= threshold else ["blip2"] if score(s, "blip2") >= threshold else []


def blip2_top_plus_filtered(s: Sample, x: float, best: Callable[[str, float], float]) -> Sequence[str]:
    threshold = best("blip2", x)
    return ["blip2"] if score(s, "blip2") >= threshold else ["raw"] if score(s, "raw") >= threshold else []


SWEEP = (0.1, 0.2, 0.3, 0.5, 0.75, 0.9)
CHOICES: Mapping[str, tuple[Sequence[float], Sequence[Choice]]] = {
    "no-filter": ((0,), [plain("raw")]),
    "basic-filter": ((0,), [plain("raw", "basic")]),
    "text-based": ((0,), [plain("raw", "in21k")]),
    "image-based": ((0,), [plain("raw", "in1k")]),
    "laion2b": ((0,), [lambda s, x, best: ["raw"] if s.flags["english"] and score(s, "raw") >= 0.28 else []]),
    "raw-top": (SWEEP, [raw_top]),
    "raw-top-in1k": ((0.3,), [lambda s, x, best: raw_top(s, x, best) if s.flags["in1k"] else []]),
    "blip2": ((0,), [plain("blip2")]),
    "blip2-top": (SWEEP, [blip2_top]),
    "blip2-top-in1k": (SWEEP[2:], [lambda s, x, best: blip2_top(s, x, best) if s.flags["in1k"] else []]),
    "blip2-on-raw-top": (SWEEP, [lambda s, x, best: ["blip2"] if raw_top(s, x, best) else []]),
    "raw-top-plus-blip2-rest": (SWEEP, [lambda s, x, best: raw_top(s, x, best) or ["blip2"]]),
    "raw-top-plus-blip2-filtered": (SWEEP, [raw_top_plus_filtered]),
    "raw-top-plus-blip2-filtered-in1k": (
        (0.3,), [lambda s, x, best: raw_top_plus_filtered(s, x, best) if s.flags["in1k"] else []],
    ),
    "blip2-top-plus-raw-filtered": (SWEEP, [blip2_top_plus_filtered]),
    "concat-top-plus-blip2-filtered": (
        SWEEP, [lambda s, x, best: ["raw+blip2" if t == "raw" else t for t in raw_top_plus_filtered(s, x, best)]],
    ),
    "raw-top-and-blip2-top": (SWEEP[:4], [lambda s, x, best: [*raw_top(s, x, best), *blip2_top(s, x, best)]]),
    "captioners": ((0,), [plain(c) for c in ("blip-finetuned", "blip2", "blip2-finetuned", "coca", "coca-finetuned")]),
    "temperatures": (
        (0,),
        [lambda s, x, best: [max(("t0.5", "t0.75", "t1", "t1.5"), key=lambda t: score(s, t))],
         *(plain(t) for t in ("t0.5", "t0.75", "t1", "t1.5"))],
    ),
    "laion-coco": (
        (0,),
        [plain("raw"), plain("blip"), plain("blip2"),
         lambda s, x, best: ["blip2"] if score(s, "blip2") >= 0.28 else [],
         lambda s, x, best: ["raw"] if score(s, "blip2") >= 0.28 else []],
    ),
}  # fmt: skip


def random_pool(spec: Spec, size: int = 300) -> list[Sample]:
    """Everything is there; cosines of two digits, so that many are equal."""
    chance = random.Random(7)
    return [
        Sample(
            number,
            {name: f"{name} of {number}" for name in spec.texts},
            {name: round(chance.gauss(0.24, 0.08), 2) for name in spec.texts},
            {name: chance.random() < 0.5 for name in spec.flags},
        )
        for number in range(size)
    ]


@pytest.mark.parametrize("file", FILES)
def test_as_the_paper_says(file: str) -> None:
    spec = load_recipe(FILES[file]).spec
    pool = random_pool(spec)
    shares, choices = CHOICES[file]
    best = cache(lambda name, x: best_share(pool, name, x))
    cases = [(share, choice) for choice in choices for share in shares]
    for mixture, (share, choice) in zip(spec.mixtures, cases, strict=True):
        wanted = [(s.number, source) for s in pool for source in choice(s, share, best)]
        found = [(number, source) for number, _, _, source in ours(mixture, pool)]
        assert found == wanted
        assert found


def test_every_file_is_tested_and_named_after_its_strategy() -> None:
    assert set(FILES) == set(CHOICES)
    assert {which.split("/")[0] for which in BY_HAND} | {"captioners", "temperatures"} == set(FILES)
    assert all(load_recipe(path).name == name for name, path in FILES.items())


def test_where_captions_are_made_for_a_part_of_the_pool() -> None:
    recipes = {file: load_recipe(path) for file, path in FILES.items()}
    partial = {f for f, r in recipes.items() for c in r.spec.on_demand if demand_part(r, c, {}) != ALL}
    assert partial == {
        "blip2-on-raw-top", "raw-top-plus-blip2-rest", "raw-top-plus-blip2-filtered",
        "raw-top-plus-blip2-filtered-in1k",
    }  # fmt: skip
    raw30 = recipes["raw-top-plus-blip2-filtered-in1k"].spec
    assert expected_share(raw30, "blip2") == pytest.approx((1 - 0.3) * 0.5, abs=0.01)  # half of all flags are true


def test_equal_captioners_are_one_column_whatever_the_file() -> None:
    """The point of the files: a second strategy costs only what is new."""
    settings = {
        c.options.model_dump_json()
        for path in FILES.values()
        for c in load_recipe(path).spec.columns
        if c.kind == "caption"
    }
    assert len(settings) == 8  # BLIP-2 at four temperatures, and the other four captioners of Table 1


def mixture_of(file: str, name: str) -> Mixture:
    return next(m for m in load_recipe(FILES[file]).spec.mixtures if m.name == name)
