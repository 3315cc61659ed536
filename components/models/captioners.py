"""Loads the captioner that a recipe names: BLIP and BLIP-2, or open_clip's CoCa."""

from __future__ import annotations

import torch

from components.base.errors import PermanentError
from components.models.blip import load_blip
from components.models.captioner import Captioner, Sampling
from components.models.coca import load_coca
from components.models.devices import pick_device
from components.models.names import OPEN_CLIP, model_folder
from components.storage.hub import HF_HUB
from components.storage.model_files import OPEN_CLIP_CONFIG


def load_captioner(
    model: str, revision: str | None = None, sampling: Sampling | None = None, device: torch.device | None = None
) -> Captioner:
    """Load a captioner of the kind that the model's own config names.

    Args:
        model: a Hugging Face id or a folder of BLIP or BLIP-2; or CoCa: `open_clip:<model>/<pretrained tag>`,
            `hf-hub:org/name`, or a folder with open_clip_config.json.
        revision: commit, branch or tag of a Hugging Face id.
        sampling: None is the paper's.
        device: None picks a GPU if there is one.

    Raises:
        PermanentError: no such model, of another kind, or broken.
        TemporaryError: the hub can't be reached.
    """
    sampling, device = sampling or Sampling(), device or pick_device()
    folder = model_folder(model) if not model.startswith((OPEN_CLIP, HF_HUB)) else None
    if model.startswith((OPEN_CLIP, HF_HUB)) or (folder and (folder / OPEN_CLIP_CONFIG).is_file()):
        if revision and not model.startswith(HF_HUB):
            raise PermanentError(f"captioner {model}: takes no revision; leave it out")
        return load_coca(model, sampling, device, revision)
    return load_blip(model, revision, sampling, device)
