"""What is known of a scorer without loading it: its options in a column, its embeddings' width, its rates. No torch."""

from __future__ import annotations

import json
from pathlib import Path

from components.engine.stage import Rate
from components.models.names import LOCAL_DIR
from components.pool.specs import ColumnSpec
from components.recipe.scorer import Scorer
from components.storage.addressed import is_address, look_up
from components.storage.model_files import OPEN_CLIP_CONFIG

WIDTHS = {"ViT-B-32": 512, "ViT-B-16": 512, "ViT-L-14": 768}  # numbers of an embedding
# Images of the image tower. An A100: the paper, Appendix B. A core: measured with PyTorch 2.15 in float32 with one
# thread on an AMD EPYC core with AVX-512, as seconds of its time, with random weights and batches of 8.
CLIP_RATES = {"ViT-L-14": Rate(490.0, 0.47)}


def scorer_of(spec: ColumnSpec) -> Scorer:
    """Return the scorer of a column of embeddings or cosines."""
    return Scorer.model_validate(spec.params["options"], by_alias=True, by_name=False)


def embedding_width(model: str) -> int:
    """Return how many numbers an embedding of this model has, as far as that is known; else 512."""
    if is_address(model):
        whole = look_up(model).read_object(OPEN_CLIP_CONFIG)
        return int(whole.get("model_cfg", {}).get("embed_dim", 512))
    config = Path(model.removeprefix(LOCAL_DIR)).expanduser() / OPEN_CLIP_CONFIG
    if model.startswith(LOCAL_DIR) and config.is_file():
        return int(json.loads(config.read_text())["model_cfg"]["embed_dim"])
    return WIDTHS.get(model, 512)
