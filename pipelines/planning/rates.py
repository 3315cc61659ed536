"""How long samples take a device: stated rates, and where each comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from components.pool.run import Node
from components.recipe import recipe as schema
from components.recipe.training import Train
from components.stages.train.scales import SCALES

TEXT_TOWER = 13.0  # an image costs this many texts in CLIP ViT-L/14 (FLOPs of its two towers)
FREE = ("index", "import", "filter", "faces")  # stages without a model of the recipe


@dataclass(frozen=True)
class Rates:
    """Samples per second of one device."""

    columns: Mapping[str, float]
    """Images, by the scorer's or the captioner's model."""
    training: Mapping[str, float]
    """Samples, by DataComp's scale."""

    def hours(self, spec: schema.Spec, node: Node, samples: float) -> float | None:
        """Return the device's hours for so many samples of a column; None where no rate is stated."""
        kind, name = node.spec.stage, node.key.partition(":")[2]
        if kind in FREE or not samples:
            return 0.0
        if kind == "screen":
            return None if node.spec.params["kind"] == "textNsfw" else 0.0
        model = next((c.model for c in spec.captioners if kind == "caption" and c.name == name), spec.scorer.model)
        if model not in self.columns:
            return None
        return samples / (self.columns[model] * (TEXT_TOWER if kind == "score" else 1.0)) / 3600

    def training_hours(self, train: Train) -> float | None:
        """Return the device's hours for one training; None where no rate is stated."""
        scale = train.scale
        if not isinstance(scale, str) or scale not in self.training:
            return None
        return SCALES[scale].samples / self.training[scale] / 3600


# The paper, Appendix B; training rates follow from its A100-hours: 4, 40 and 960.
A100 = Rates(
    {"ViT-L-14": 490.0, "Salesforce/blip2-opt-2.7b": 75.0},
    {"small": 12.8e6 / 4 / 3600, "medium": 128e6 / 40 / 3600, "large": 1.28e9 / 960 / 3600},
)
# Measured with PyTorch 2.15 in float32 with one thread on an AMD EPYC core with AVX-512, as seconds of its time, with
# random weights. ViT-L/14: batches of 8. BLIP-2: batches of 16, 20 tokens; extrapolated from models of 1 and 3 of the
# 39 and 32 layers of its towers. Training: steps of 32 of ViT-B/32, DataComp's student up to scale medium.
CORE = Rates({"ViT-L-14": 0.47, "Salesforce/blip2-opt-2.7b": 0.07}, dict.fromkeys(("debug", "small", "medium"), 1.6))
