"""The data set's card: where every pair comes from, written from the run's own records."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from components.pool.run import Run
from components.pool.specs import ColumnSpec
from components.recipe import recipe as schema
from components.recipe.mixtures import Mixture, texts_of

_FORMAT = """\
Webdataset tars, named by `meta.json` (DataComp) and `sizes.json` (open_clip), each sample a `.jpg` (or `.png`,
`.webp`: the pool's own bytes, not re-encoded), a `.txt` with the chosen text and a `.json` with the pool's metadata
plus `uid`, `source` (which text was chosen), `rule` (which rule chose it) and `caption` (the text that came with the
image). `sample_ids.npy` lists the uids, sorted, as DataComp's subset files do. `dataset.json` has the SHA-256 of every
tar."""

_BLURRED = """

**Faces are blurred**, as far as a detector found them: those images are JPEGs of quality 95, re-encoded, and every
`.json` has the boxes as `face_bboxes` (DataComp's name): `[x0, y0, x1, y1]` in shares of width and height."""

_LICENCE = """\
The images and their original texts belong to their authors; this data set grants no right to them. Synthetic texts
fall under the terms of the models that wrote them. People may be shown or named: nothing was removed beyond what the
pool's makers removed. Check the pool's terms before you pass any of this on."""


def card(run: Run, mixture: Mixture, dataset: Mapping[str, Any]) -> str:
    """Write README.md of a data set in the hub's format: YAML header, then Markdown."""
    samples = dataset["samples"]
    sections = [
        f"---\npretty_name: {mixture.name}\ntask_categories: [zero-shot-image-classification]\n"
        f"tags: [webdataset, image-text, recaption]\nlicense: other\nsize_categories: [{_size(samples)}]\n---",
        f"# {mixture.name}\n\n{samples:,} image-text pairs of {dataset['uids']:,} images from the pool "
        f"**{run.pool.name}** (content `{run.content}`), in {len(dataset['shards']):,} tars of "
        f"{dataset['bytes']:,} bytes. Made by recaption {dataset['code']}, run `{run.name}`.",
        f"## Texts\n\n{_texts(run, mixture, dataset)}",
        f"## Rules\n\n{_rules(run, mixture)}",
        f"## Format\n\n{_FORMAT}{_BLURRED if run.spec.training_sets.blur else ''}",
        f"## Recipe\n\n```yaml\n{schema.dump_recipe(run.recipe).rstrip()}\n```",
        f"## Licence\n\n{_LICENCE}",
    ]
    return "\n\n".join(sections) + "\n"


def _size(samples: int) -> str:
    """Return the hub's size category."""
    low, names = 1_000, ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B")
    if samples < low:
        return "n<1K"
    for small, large in pairwise(names):
        if samples < low * 10:
            return f"{small}<n<{large}"
        low *= 10
    return "n>100B"


def _texts(run: Run, mixture: Mixture, dataset: Mapping[str, Any]) -> str:
    lines = ["| text | pairs |", "|---|---|"]
    lines += [f"| {name} | {count:,} |" for name, count in dataset["sources"].items()]
    used = dict.fromkeys(name for rule in mixture.rules for name in texts_of(rule))
    lines += ["", *(f"- **{name}**: {_made_by(run.text(name))}" for name in used)]
    return "\n".join(lines)


def _made_by(spec: ColumnSpec) -> str:
    if spec.stage == "index":
        return "the text that came with the image"
    params = ", ".join(f"{key} {_plain(value)}" for key, value in spec.params.items())
    return f"column `{spec.folder}` ({params})"


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _rules(run: Run, mixture: Mixture) -> str:
    """Write the rules as the recipe has them, and what mix found: thresholds and counts."""
    chosen = "the first rule that matches gives its text" if mixture.emit == "first" else "every match is a pair"
    rules = mixture.model_dump(mode="json", by_alias=True, exclude_none=True)["rules"]
    lines = [f"Per image, {chosen}.", "", *(f"{i}. `{json.dumps(rule)}`" for i, rule in enumerate(rules))]
    if run.spec.drop:
        lines += ["", f"Left out before the rules: {'; '.join(c.in_words() for c in run.spec.drop)}."]
    found = json.loads(run.storage.read(f"{run.mixture_folder(mixture)}/mixture.json"))
    return "\n".join([*lines, "", "What mix found:", "", "```json", json.dumps(_brief(found), indent=1), "```"])


def _brief(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return mixture.json without what has an entry per shard."""
    return {key: value for key, value in found.items() if key not in ("shards", "rows")}
