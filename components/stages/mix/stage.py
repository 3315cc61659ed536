"""mix: apply every mixture's rules to the whole pool; one pass over the columns serves all mixtures."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from components.base.errors import PermanentError
from components.base.threads import map_ahead
from components.base.version import version
from components.engine.stage import Needs, Step
from components.pool.run import Run
from components.pool.shards import Shard
from components.recipe.mixtures import Mixture
from components.selection.rule_inputs import (
    drops,
    find_thresholds,
    first_reasons,
    read_values,
    require_finished,
    unseen_by,
)
from components.selection.rules import (
    Selection,
    Thresholds,
    Values,
    columns_of,
    left_by,
    lender_of,
    select,
    share_of,
    shares_of,
    tested_by,
    why_dropped,
)
from components.selection.score_reader import ScoreReader

log = logging.getLogger(__name__)

UNREADABLE = "the image can't be read"
EMPTY = "empty, so that nothing is written, trained or evaluated"


@dataclass
class MixtureCounts:
    """The pairs that one mixture has chosen so far, and the samples it dropped."""

    mixture: Mixture
    folder: str
    usable: int = 0
    images: int = 0
    pairs: Counter[int] = field(default_factory=Counter)
    """Number of pairs, by rule."""
    scored: Counter[int] = field(default_factory=Counter)
    """Pairs whose text has a cosine, by rule."""
    cosines: dict[int, float] = field(default_factory=dict)
    """Sum of those cosines, by rule."""
    lost: Counter[str] = field(default_factory=Counter)
    """Samples left out before the rules, by reason."""
    dropped: Counter[str] = field(default_factory=Counter)
    """All samples left out, by reason."""
    left: dict[int, NDArray[np.int64]] = field(default_factory=dict)
    """By rule, as `left_by` counts them; no longer counted once there is a pair."""
    shards: list[dict[str, Any]] = field(default_factory=list)


class MixStep(Step):
    """Writes the selection of each mixture, a parquet per shard."""

    name = "mix"
    summary = "choose the text of each image by the rules of each mixture"
    reads = ("index", "texts", "scores", "flags")
    writes = "mixtures/<mixture>: uid, text, rule, source per shard; mixture.json"
    needs = Needs(memory_gib=1)

    def run(self, run: Run) -> None:
        tallies = [MixtureCounts(m, run.mixture_folder(m)) for m in run.mixtures]
        tallies = [t for t in tallies if not _is_chosen(run, t)]
        if tallies:
            self._choose(run, tallies)
        if not run.written:
            raise PermanentError(_all_empty(run))

    def outcome(self, run: Run) -> dict[str, Any]:
        return {"empty": run.empty}

    def _choose(self, run: Run, tallies: list[MixtureCounts]) -> None:
        """Apply the rules of these mixtures and write what they choose."""
        columns = run.open_columns()
        texts, scores, flags = columns_of(t.mixture for t in tallies)
        scores |= {name for name in texts if run.has("score", name)}  # for the mean cosines
        seen = {run.sees.name} if run.sees else set()
        tested = tested_by(run.spec.drop)
        scores, flags = scores | tested[0], flags | tested[1]
        require_finished(run, columns, _keys(run, texts, scores | seen, flags))
        reader = ScoreReader(run, columns)
        thresholds = find_thresholds(run, [t.mixture for t in tallies], run.spec.scores, reader)

        def read(shard: Shard) -> tuple[Shard, pa.Array, Values, Mapping[str, int]]:
            index = columns.read(run.index, shard, ["text", "error"])
            index = index.filter(pc.is_null(index.column("error")))
            uids = index.column("uid").combine_chunks()
            values = read_values(run, columns, shard, index, texts, (), flags)
            found = {name: reader.read(name, shard, uids) for name in scores | seen}
            values.scores = {name: cosines for name, (cosines, _) in found.items()}
            unreadable = [(UNREADABLE, found[name][1]) for name in seen]
            dropped = drops(run.spec.drop, values, thresholds)
            reasons = [*unreadable, *dropped, *unseen_by(run, columns, shard, uids)]
            kept, lost = first_reasons(index.num_rows, reasons)
            return shard, uids.filter(pa.array(kept)), values.filter(kept), lost

        for shard, uids, values, lost in map_ahead(read, run.pool.shards):
            for tally in tallies:
                tally.usable += sum(lost.values())
                tally.lost.update(lost)
                tally.dropped.update(lost)
                chosen = select(tally.mixture, values, thresholds)
                _write(run, tally, shard, uids, chosen)
                _count(tally, values, chosen, thresholds)
        for tally in tallies:
            result = _result(run, tally, thresholds)
            run.storage.write(f"{tally.folder}/mixture.json", json.dumps(result, indent=1).encode())
            pairs, usable = f"{result['pairs']:,}", f"{tally.usable:,}"
            log.info("mixture %s: %s pairs of %s usable samples", tally.mixture.name, pairs, usable)
            for warning in result["warnings"]:
                log.warning("mixture %s: %s", tally.mixture.name, warning)


def _all_empty(run: Run) -> str:
    """Say that there is nothing to write a training set of, and why of each mixture."""
    names = run.spec.train.mixtures if run.spec.train else None
    said = [f"{name}: {why}" for name, why in run.empty.items() if names is None or name in names]
    return f"there is no training set to write, as no mixture has a pair: {'; '.join(said)}"


def _why_empty(tally: MixtureCounts, unscored: Sequence[str]) -> str:
    """Say which rule left how many samples of a mixture without a pair.

    Args:
        unscored: scores that no sample has, though the best share of them is asked for.
    """
    said = [f"of {tally.usable:,} usable images"]
    if tally.lost.total():
        reasons = ", ".join(f"{n:,} ({reason})" for reason, n in sorted(tally.lost.items()) if n)
        said.append(f"{tally.lost.total():,} are left out before the rules: {reasons}")
    for number, rule in enumerate(tally.mixture.rules):
        texts, *others = tally.left[number].tolist()
        name = f"rule {number + 1}" + (f" ({rule.name})" if rule.name else "")
        steps = [f"{n:,} of these meet {c.in_words()}" for n, c in zip(others, rule.where, strict=True)]
        said.append(", ".join([f"{name}: {texts:,} have its text", *steps]))
    said += [f"no image has a score {name}" for name in unscored]
    return f"{EMPTY}: {said[0]} {'; '.join(said[1:])}"


def _is_chosen(run: Run, tally: MixtureCounts) -> bool:
    """Return whether the mixture is there, with the mean of every cosine that this run has of its texts.

    Where another recipe, which had fewer of them, made it, it is chosen again: the same pairs, with their means.
    """
    path = f"{tally.folder}/mixture.json"
    if run.storage.size(path) is None:
        return False
    there: dict[str, str] = json.loads(run.storage.read(path))["cosines"]
    return run.cosines(tally.mixture).items() <= there.items()


def _keys(run: Run, texts: set[str], scores: set[str], flags: set[str]) -> list[str]:
    """Return the nodes that hold these columns, and those that `trainingSets.blur` needs, in the run's order."""
    specs = {run.index.hash, *(run.text(name).hash for name in texts), *(run.score(name).hash for name in scores)}
    specs |= {run.flag(name).hash for name in flags} | {run.boxes(name).hash for name in run.spec.training_sets.blur}
    return [key for key, node in run.nodes.items() if node.spec.hash in specs]


def _write(run: Run, tally: MixtureCounts, shard: Shard, uids: pa.Array, chosen: Selection) -> None:
    table = pa.table(
        {
            "uid": uids.take(pa.array(chosen.rows)),
            "text": chosen.texts,
            "rule": pa.array(chosen.rules, pa.int32()),
            "source": chosen.sources,
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    data = sink.getvalue()
    run.storage.write(f"{tally.folder}/{shard.name}.parquet", data)
    digest = hashlib.sha256(data).hexdigest()
    tally.shards.append({"name": shard.name, "rows": table.num_rows, "sha256": digest})


def _count(tally: MixtureCounts, values: Values, chosen: Selection, thresholds: Thresholds) -> None:
    tally.usable += values.rows
    if not tally.pairs.total():
        for number, rule in enumerate(tally.mixture.rules):
            tally.left[number] = tally.left.get(number, 0) + left_by(rule, tally.mixture, values, thresholds)
    dropped = np.ones(values.rows, bool)
    dropped[chosen.rows] = False
    tally.images += values.rows - int(dropped.sum())
    for reason, samples in why_dropped(tally.mixture, values, thresholds).items():
        tally.dropped[reason] += int((samples & dropped).sum())
    cosines = np.full(len(chosen.rows), np.nan)
    for source in set(chosen.sources.unique().to_pylist()) & values.scores.keys():
        mine = pc.equal(chosen.sources, source).to_numpy(zero_copy_only=False)
        cosines[mine] = values.scores[source][chosen.rows[mine]]
    for number in np.unique(chosen.rules).tolist():
        mine = chosen.rules == number
        there = mine & np.isfinite(cosines)
        tally.pairs[number] += int(mine.sum())
        tally.scored[number] += int(there.sum())
        tally.cosines[number] = tally.cosines.get(number, 0.0) + float(cosines[there].sum())


def _result(run: Run, tally: MixtureCounts, thresholds: Thresholds) -> dict[str, Any]:
    mixture = tally.mixture
    rules = [
        {
            "index": i,
            "name": rule.name,
            "text": rule.model_dump(mode="json", by_alias=True)["text"],
            "pairs": tally.pairs[i],
            "scored": tally.scored[i],
            "mean_cosine": _mean(tally, [i]),
        }
        for i, rule in enumerate(mixture.rules)
    ]
    used = {pair for rule in mixture.rules for pair in shares_of(mixture, rule)}
    used |= {pair for condition in run.spec.drop if (pair := share_of(condition))}
    unscored = sorted({score for score, share in used if math.isnan(thresholds[score, share])})
    return {
        "name": mixture.name,
        "emit": mixture.emit,
        "usable": tally.usable,
        "images": tally.images,
        "pairs": tally.pairs.total(),
        "scored": tally.scored.total(),
        "mean_cosine": _mean(tally, range(len(rules))),
        "cosines": run.cosines(mixture),
        "rules": rules,
        "thresholds": [
            {"score": s, "top": f, "threshold": None if s in unscored else thresholds[s, f]} for s, f in sorted(used)
        ],
        "dropped": {reason: n for reason, n in sorted(tally.dropped.items()) if n},
        "warnings": [*warnings_of(run, mixture), *(() if tally.pairs.total() else [_why_empty(tally, unscored)])],
        "code": version(),
        "shards": tally.shards,
    }


def _mean(tally: MixtureCounts, rules: Iterable[int]) -> float | None:
    """Return the mean cosine of these rules' pairs; None where a rule's text (a concatenation, say) never has one."""
    rules = [r for r in rules if tally.pairs[r]]
    if not rules or not all(tally.scored[r] for r in rules):
        return None
    return sum(tally.cosines[r] for r in rules) / sum(tally.scored[r] for r in rules)


def warnings_of(run: Run, mixture: Mixture) -> list[str]:
    """Warn of thresholds of one kind of score that are applied to another."""
    found = []
    for rule in mixture.rules:
        for condition in rule.where:
            own, lent = run.tested(condition), run.tested(lender_of(condition, mixture))
            if (own.stage, own.params) != (lent.stage, lent.params):
                found.append(
                    f"compares {condition.name} with the threshold of rule {condition.lender}, but they were not made "
                    "by the same scorer: their scales may differ"
                )
    return found
