"""mix: apply every mixture's rules to the whole pool; one pass over the columns serves all mixtures."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.pool import recipe as schema
from components.pool import version
from components.pool.columns import Columns
from components.pool.rules import Selection, Thresholds, Values, has_any_text, lender, select, shares_of
from components.pool.run import Run
from components.pool.shards import Shard
from components.pool.stage import Needs, Step
from components.pool.values import ahead, find_thresholds, read_values

log = logging.getLogger(__name__)


@dataclass
class Tally:
    """What one mixture has chosen so far."""

    mixture: schema.Mixture
    folder: str
    usable: int = 0
    images: int = 0
    pairs: Counter[int] = field(default_factory=Counter)
    """By rule."""
    scored: Counter[int] = field(default_factory=Counter)
    """Pairs whose text has a cosine, by rule."""
    cosines: dict[int, float] = field(default_factory=dict)
    """Sum of those cosines, by rule."""
    dropped: Counter[str] = field(default_factory=Counter)
    shards: list[dict[str, Any]] = field(default_factory=list)


class MixStep(Step):
    """Writes the selection of each mixture, a parquet per shard."""

    name = "mix"
    summary = "choose the text of each image by the rules of each mixture"
    reads = ("index", "texts", "scores", "flags")
    writes = "mixtures/<mixture>: uid, text, rule, source per shard; mixture.json"
    needs = Needs(memory_gib=1)

    def run(self, run: Run) -> None:
        tallies = [Tally(m, run.mixture_folder(m)) for m in run.spec.mixtures]
        tallies = [t for t in tallies if run.storage.size(f"{t.folder}/mixture.json") is None]
        if not tallies:
            return
        thresholds = find_thresholds(run, [t.mixture for t in tallies], run.spec.scores)
        columns = Columns(run.storage, run.pool.name)
        for node in run.nodes.values():
            columns.parts(node.spec, run.pool.shards[0])  # list once, before the threads

        def read(shard: Shard) -> tuple[Shard, pa.Array, Values]:
            index = columns.read(run.index, shard, ["text", "error"])
            index = index.filter(pc.is_null(index.column("error")))
            scores = [n for n in run.spec.scores if f"score:{n}" in run.nodes or f"import:{n}" in run.nodes]
            values = read_values(run, columns, shard, index, run.spec.texts, scores, run.spec.flags)
            return shard, index.column("uid").combine_chunks(), values

        for shard, uids, values in ahead(read, run.pool.shards):
            for tally in tallies:
                chosen = select(tally.mixture, values, thresholds)
                _write(run, tally, shard, uids, chosen)
                _count(tally, values, chosen)
        for tally in tallies:
            result = _result(run, tally, thresholds)
            run.storage.create(f"{tally.folder}/mixture.json", json.dumps(result, indent=1).encode())
            log.info("mixture %s: %d pairs of %d usable samples", tally.mixture.name, result["pairs"], tally.usable)
            for warning in result["warnings"]:
                log.warning("mixture %s: %s", tally.mixture.name, warning)


def _write(run: Run, tally: Tally, shard: Shard, uids: pa.Array, chosen: Selection) -> None:
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


def _count(tally: Tally, values: Values, chosen: Selection) -> None:
    tally.usable += values.rows
    images = np.unique(chosen.rows)
    tally.images += len(images)
    for source in set(chosen.sources.unique().to_pylist()) & values.scores.keys():
        of_source = pc.equal(chosen.sources, source).to_numpy(zero_copy_only=False)
        cosine = values.scores[source][chosen.rows[of_source]]
        for rule in np.unique(chosen.rules[of_source]).tolist():
            mine = cosine[chosen.rules[of_source] == rule]
            there = np.isfinite(mine)
            tally.scored[rule] += int(there.sum())
            tally.cosines[rule] = tally.cosines.get(rule, 0.0) + float(mine[there].sum(dtype=np.float64))
    tally.pairs.update(chosen.rules.tolist())
    left = np.ones(values.rows, bool)
    left[images] = False
    texts = has_any_text(tally.mixture, values)
    tally.dropped["no text that a rule could use"] += int((left & ~texts).sum())
    tally.dropped["no rule's conditions hold"] += int((left & texts).sum())


def _result(run: Run, tally: Tally, thresholds: Thresholds) -> dict[str, Any]:
    rules = [
        {
            "index": i,
            "name": rule.name,
            "text": rule.model_dump(mode="json", by_alias=True)["text"],
            "pairs": tally.pairs[i],
            "mean_cosine": _mean(tally, [i]),
        }
        for i, rule in enumerate(tally.mixture.rules)
    ]
    used = {pair for rule in tally.mixture.rules for pair in shares_of(tally.mixture, rule)}
    warnings = _warnings(run, tally.mixture)
    if not tally.pairs.total():
        warnings.append("no image matched any rule: the mixture is empty")
    return {
        "name": tally.mixture.name,
        "emit": tally.mixture.emit,
        "usable": tally.usable,
        "images": tally.images,
        "pairs": tally.pairs.total(),
        "mean_cosine": _mean(tally, range(len(rules))),
        "rules": rules,
        "thresholds": [{"score": s, "top": f, "threshold": thresholds[s, f]} for s, f in sorted(used)],
        "dropped": {reason: n for reason, n in sorted(tally.dropped.items()) if n},
        "warnings": warnings,
        "code": version(),
        "shards": tally.shards,
    }


def _mean(tally: Tally, rules: Iterable[int]) -> float | None:
    """Mean cosine of the rules' pairs; None unless all of them have one."""
    rules = list(rules)
    pairs = sum(tally.pairs[r] for r in rules)
    if not pairs or sum(tally.scored[r] for r in rules) < pairs:
        return None
    return sum(tally.cosines.get(r, 0.0) for r in rules) / pairs


def _warnings(run: Run, mixture: schema.Mixture) -> list[str]:
    """Thresholds of one kind of score applied to another."""
    found = []
    for rule in mixture.rules:
        for condition in rule.where:
            if isinstance(condition, schema.ScoreCondition) and isinstance(condition.at_least, schema.RuleThreshold):
                own, lent = run.score(condition.score), run.score(lender(condition, mixture).score)
                if own.stage != lent.stage:
                    found.append(
                        f"compares {condition.score} with the threshold of rule {condition.at_least.rule}, but one is "
                        "imported and one is computed here: other weights or preprocessing may shift them"
                    )
    return found
