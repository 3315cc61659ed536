"""How many candidates came how far, and why not further: every one is accounted for, or the page says so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from components.pool.columns import Columns
from components.pool.run import Run
from components.pool.shards import read_json
from components.stages.report.gather import failures_of, shards_of

DOWNLOAD, SAMPLE = "download: ", "sample: "  # how the index calls what failed before the tar and in it
WITH_IMAGES = "with images"
FILES = {"wat": "WAT", "warc": "WARC"}


@dataclass(frozen=True)
class Level:
    """How many candidates came this far."""

    name: str
    count: int
    lost: Mapping[str, int] = field(default_factory=dict)
    """Losses by reason, on the way to the next level."""
    won: Mapping[str, int] = field(default_factory=dict)
    """Regained before the next level, by how."""
    counts_others: bool = False
    """The next level counts something else: images, say, instead of pages."""


@dataclass(frozen=True)
class Funnel:
    """The levels of a pool, from its source to what can be used."""

    levels: Sequence[Level]
    shards: int
    """Number of shards that are indexed."""
    notes: Mapping[str, int]
    """Defects of texts, files and shards that cost no sample, by reason."""
    source: Sequence[str] = ()
    """Sentences on where the images were found and how they were fetched; none for shards that were there."""
    differences: Sequence[str] = ()
    """Disagreements between the stages' own counts."""

    @property
    def usable(self) -> int:
        return self.levels[-1].count

    @property
    def doubts(self) -> list[str]:
        """List what doesn't add up."""
        broken = [
            f"{a.name} {a.count:,} − {sum(a.lost.values()):,} + {sum(a.won.values()):,} ≠ {b.name} {b.count:,}"
            for a, b in pairwise(self.levels)
            if not a.counts_others and a.count - sum(a.lost.values()) + sum(a.won.values()) != b.count
        ]
        return [*broken, *self.differences]


def funnel(run: Run, columns: Columns) -> Funnel:
    """Count a pool's levels from the index and, if it was downloaded, from its manifest, which has every candidate."""
    counts, rows = failures_of(run, columns, run.nodes["index"])
    shards = shards_of(run, columns, run.nodes["index"])
    failed = _by_size({reason: n for reason, n in counts.items() if reason.startswith(DOWNLOAD)})
    broken = _by_size({reason: n for reason, n in counts.items() if reason.startswith(SAMPLE)})
    notes = {reason: n for reason, n in counts.items() if reason not in failed and reason not in broken}
    below = [Level("in the tars", rows, broken), Level("usable", rows - sum(broken.values()))]
    if run.ingest is None:
        return Funnel([Level("candidates", rows + sum(failed.values()), failed), *below], shards, notes)

    manifest = read_json(run.storage, run.pool.manifest_path, dict)
    extraction, rounds = manifest["extraction"], manifest["rounds"]
    differences = list(_differences(extraction, rounds))
    if shards == len(run.pool.shards):
        if failed != _by_size({DOWNLOAD + reason: n for reason, n in rounds[0]["failures"].items()}):
            differences.append(f"the first round's failures {rounds[0]['failures']} ≠ the index's {failed}")
    else:
        samples = sum(said["samples"] for said in rounds)
        below = [Level("in the tars", samples, counts_others=True), Level("indexed so far", rows, broken), below[1]]
    levels = [*_found(extraction), _fetched(rounds, manifest["reasons"]), *below]
    return Funnel(levels, shards, _notes(extraction) | notes, _source(run, manifest), differences)


def _found(extraction: Mapping[str, Any]) -> list[Level]:
    """Return the levels from records or rows to images with a text."""
    records, lost = extraction["records"], _by_size(extraction["dropped"] | extraction["lost"])
    if extraction["kind"] == "table":
        return [Level("rows of the tables", sum(records.values()), lost)]
    others = {reason: n for reason, n in records.items() if reason != WITH_IMAGES}
    return [
        Level("records", sum(records.values()), _by_size(others)),
        Level("pages with images", records.get(WITH_IMAGES, 0), counts_others=True),
        Level("images of these pages", extraction["candidates"], lost),
    ]


def _fetched(rounds: Sequence[Mapping[str, Any]], meanings: Mapping[str, str]) -> Level:
    """Return the level with the first round's failures, and what later rounds mended of them."""
    first, *again = rounds
    lost = {f"{DOWNLOAD}{reason} ({meanings[reason]})": n for reason, n in first["failures"].items()}
    won = {}
    for number, said in enumerate(again, 1):
        failed = ", ".join(f"{reason} {n:,}" for reason, n in said["failures"].items())
        what = f"{said['candidates']:,} tried" + (f", failed again: {failed}" if failed else "")
        won[f"fetched again, round {number} ({said['retry']}): {what}"] = said["samples"]
    return Level("candidates", first["candidates"], lost, won)


def _differences(extraction: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if extraction["kept"] != rounds[0]["candidates"]:
        yield f"extract kept {extraction['kept']:,} ≠ download was given {rounds[0]['candidates']:,}"
    for number, said in enumerate(rounds):
        settled = said["samples"] + sum(said["failures"].values())
        if settled != said["candidates"]:
            yield f"download round {number}: {said['candidates']:,} candidates ≠ {settled:,} settled"


def _notes(extraction: Mapping[str, Any]) -> dict[str, int]:
    damaged = extraction["damaged"]
    places = f"{damaged['places']:,} place{'' if damaged['places'] == 1 else 's'}"
    found = {
        f"files: bytes that can't be read, in {places}": damaged["bytes"],
        "text: with characters that nobody could decode": extraction["undecoded"],
    }
    return {note: n for note, n in found.items() if n}


def _source(run: Run, manifest: Mapping[str, Any]) -> list[str]:
    extraction, crawl, how = manifest["extraction"], run.spec.pool.common_crawl, run.spec.download
    files, kind = extraction["files"], FILES.get(extraction["kind"], "table")
    place = f"Common Crawl's {extraction['dump']}, read from {crawl.base}" if crawl else f"{run.spec.pool.urls}"
    asked = "robots.txt was asked" if how and how.robots else "robots.txt was not asked"
    said = "s" if files != 1 else ""
    return [
        f"Found in {files:,} {kind}{' file' if crawl else ''}{said} of {place}.",
        f"Downloaded as {', '.join(manifest['user_agents'])}; X-Robots-Tag was respected, {asked}.",
    ]


def _by_size(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: -item[1]))
