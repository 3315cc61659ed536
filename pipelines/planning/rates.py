"""How long samples take a device: stated rates, and where each comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from components.engine.registry import column_stage, column_stages
from components.pool.run import Node
from components.recipe.training import Train
from components.stages.train.scales import SCALES


@dataclass(frozen=True)
class Rates:
    """How fast one device is."""

    device: Literal["a100", "core"]
    training: Mapping[str, float]
    """Samples per second, by DataComp's scale."""

    def hours(self, node: Node, samples: float) -> float | None:
        """Return the device's hours for so many samples of a column; None where no rate is stated."""
        rate = column_stage(node.spec.stage).rate(node.spec)
        if not samples:
            return 0.0
        return None if rate is None else samples / getattr(rate, self.device) / 3600

    def training_hours(self, train: Train) -> float | None:
        """Return the device's hours for one training; None where no rate is stated."""
        scale = train.scale
        if not isinstance(scale, str) or scale not in self.training:
            return None
        return SCALES[scale].samples / self.training[scale] / 3600


def stated(rates: Rates) -> str:
    """Return the models for which the stages state a rate, with the rate on this device, for a sentence."""
    found = {model: getattr(rate, rates.device) for stage in column_stages() for model, rate in stage.rates.items()}
    return " and ".join(f"{model} {rate:g}" for model, rate in sorted(found.items(), reverse=True))


# The paper, Appendix B: its A100-hours are 4, 40 and 960.
A100 = Rates("a100", {"small": 12.8e6 / 4 / 3600, "medium": 128e6 / 40 / 3600, "large": 1.28e9 / 960 / 3600})
# Measured with PyTorch 2.15 in float32 with one thread on an AMD EPYC core with AVX-512, as seconds of its time, with
# random weights: steps of 32 of ViT-B/32, DataComp's student up to scale medium. (A core's rate of BLIP-2, which its
# stage states: batches of 16, 20 tokens; extrapolated from models of 1 and 3 of the 39 and 32 layers of its towers.)
CORE = Rates("core", dict.fromkeys(("debug", "small", "medium"), 1.6))
