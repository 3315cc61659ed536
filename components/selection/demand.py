"""Decides which samples a captioner is asked for, and freezes that in a file before the first worker starts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import TypeAdapter

from components.base.hashing import content_hash, said
from components.pool.columns import ALL
from components.pool.run import Run
from components.pool.shards import Shard
from components.recipe import recipe as schema
from components.recipe.mixtures import AnyCondition, BestOf, Mixture, Rule, firsts_of, texts_of
from components.selection.rule_inputs import drop_samples, find_thresholds, read_values
from components.selection.rules import Bools, Values, columns_of, demanded, names_of, needs_all, shares_of

Demand = Callable[[Shard, pa.Table], Bools]
"""From a shard and the N rows of its index to (N,) bool: which samples a column is asked for."""

CONDITIONS = TypeAdapter(list[AnyCondition])
VERSION = 1  # raise it when `demanded` would answer otherwise: parts made for the old answer stay, another one is added
PROBES = 100_000  # imagined samples behind an expected share: its standard error is below 0.2 points


def demand_part(recipe: schema.Recipe, captioner: str, hashes: Mapping[str, str]) -> str:
    """Name the part of a captioner's column: `all` when every sample is asked for, else a hash of what decides.

    The pool's content is not in it.

    Args:
        hashes: of the known columns, by node key.
    """
    mixtures = _using(recipe.spec, captioner)
    if any(_takes_all(recipe.spec, m, captioner) for m in mixtures):
        return ALL
    rules = [said(mixture, "name") for mixture in mixtures]
    return content_hash([VERSION, captioner, rules, dict(hashes), recipe.spec.drop])


def _using(spec: schema.Spec, captioner: str) -> list[Mixture]:
    """Return the mixtures that take this captioner's texts, each choice once: a further name asks for no more."""
    return [m for m in firsts_of(spec.mixtures).values() if any(captioner in names_of(rule) for rule in m.rules)]


def _takes_all(spec: schema.Spec, mixture: Mixture, captioner: str) -> bool:
    """Tell whether a rule asks for every sample's caption whatever the known columns say."""
    unknown = {*spec.on_demand}
    if any(needs_all(mixture, rule, captioner) for rule in mixture.rules):
        return True
    if spec.drop:
        return False
    for rule in mixture.rules:
        if captioner in names_of(rule) and _open_everywhere(rule, unknown):
            return True
        if mixture.emit == "first" and _decided_somewhere(rule, unknown):
            return False  # a match that is certain before captions exist may take samples away
    return False


def _open_everywhere(rule: Rule, unknown: set[str]) -> bool:
    """Tell whether no known column can rule a match out."""
    texts, conditions = _unknown_in(rule, unknown)
    return all(conditions) and (any(texts) if isinstance(rule.text, BestOf) else all(texts))


def _decided_somewhere(rule: Rule, unknown: set[str]) -> bool:
    """Tell whether known columns alone can make a match certain."""
    texts, conditions = _unknown_in(rule, unknown)
    return not any(conditions) and not (all(texts) if isinstance(rule.text, BestOf) else any(texts))


def _unknown_in(rule: Rule, unknown: set[str]) -> tuple[list[bool], list[bool]]:
    """Tell of each text and of each condition whether it waits for a captioner."""
    return [name in unknown for name in texts_of(rule)], [c.name in unknown for c in rule.where]


def write_demand(run: Run, captioner: str) -> None:
    """Find the thresholds of the known scores and freeze the demand, unless that is done."""
    path = run.demand_path(captioner)
    if run.storage.size(path) is None:
        run.storage.create(path, json.dumps(_find_demand(run, captioner), indent=1).encode())


def load_demand(run: Run, captioner: str, shards: Sequence[Shard] | None = None) -> Demand:
    """Read the frozen demand: a function from a shard's index rows to the samples that are asked for.

    Args:
        shards: those it will be asked about; None for any.
    """
    return _demand_of(run, json.loads(run.storage.read(run.demand_path(captioner))), shards)


def foresee_demand(run: Run, captioner: str) -> Demand:
    """Return the demand as `write_demand` would freeze it now, for a plan."""
    if run.storage.size(run.demand_path(captioner)) is not None:
        return load_demand(run, captioner)
    return _demand_of(run, _find_demand(run, captioner))


def _find_demand(run: Run, captioner: str) -> dict[str, Any]:
    mixtures = _using(run.spec, captioner)
    found = find_thresholds(run, mixtures, run.spec.early)
    return {
        "captioner": captioner,
        "mixtures": [m.model_dump(mode="json", by_alias=True) for m in mixtures],
        "thresholds": [[*pair, None if math.isnan(value) else value] for pair, value in sorted(found.items())],
        "drop": [said(condition) for condition in run.spec.drop],
    }


def _demand_of(run: Run, value: Mapping[str, Any], shards: Sequence[Shard] | None = None) -> Demand:
    captioner = value["captioner"]
    mixtures = [Mixture.model_validate(m) for m in value["mixtures"]]
    thresholds = {(score, share): math.nan if t is None else t for score, share, t in value["thresholds"]}
    drop = CONDITIONS.validate_python(value["drop"])
    columns = run.open_columns(shards)
    known = set(run.spec.early)
    texts, scores, flags = (names & known for names in columns_of(mixtures))

    def demand(shard: Shard, index: pa.Table) -> Bools:
        values = read_values(run, columns, shard, index, texts, scores, flags)
        kept, _ = drop_samples(run, columns, shard, index, drop, thresholds)
        return demanded(mixtures, captioner, values, thresholds) & kept

    return demand


def expected_share(spec: schema.Spec, captioner: str) -> float:
    """Estimate the share of the pool that a captioner will see, for a plan before there are scores.

    Scores are taken to be independent, raw text to be there, flags to be true for every second sample, and `drop` to
    drop nothing.
    """
    mixtures, random = _using(spec, captioner), np.random.default_rng(0)
    if not mixtures:
        return 1.0
    values = Values(PROBES)
    for name in spec.early:
        if name in spec.flags:
            values.flags[name] = (random.random(PROBES) < 0.5, np.ones(PROBES, bool))
            continue
        if name in spec.texts:
            values.texts[name] = pa.repeat("", PROBES)
        values.scores[name] = random.random(PROBES, np.float32)
    thresholds = {pair: 1 - pair[1] for m in mixtures for rule in m.rules for pair in shares_of(m, rule)}
    return float(demanded(mixtures, captioner, values, thresholds).mean())
