"""The linear head gives what its own module gives, and any other file is refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from components.base.errors import PermanentError
from components.models.heads import load_linear

WIDTH = 16


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_linear_head_gives_what_its_module_gives(tmp_path: Path, suffix: str) -> None:
    """As LAION's own code has it: nn.Linear(768, 1) on the normalised embedding."""
    torch.manual_seed(0)
    module, file = nn.Linear(WIDTH, 1), tmp_path / f"head.{suffix}"
    save_file(module.state_dict(), file) if suffix == "safetensors" else torch.save(module.state_dict(), file)
    vectors = np.random.default_rng(0).normal(size=(40, WIDTH))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    with torch.inference_mode():
        expected = module(torch.from_numpy(vectors).float())[:, 0].numpy()
    found = load_linear(str(file), "aesthetic")(vectors)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert (found.dtype, found.shape) == (np.float32, (40,))


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"weight": torch.ones(1, 4)}, r"has weight \(1, 4\); expected weight \(1, D\) and bias \(1,\)"),
        ({"weight": torch.ones(2, 4), "bias": torch.ones(2)}, r"has weight \(2, 4\), bias \(2,\); expected"),
        (
            {"layers.0.weight": torch.ones(1, 4), "layers.0.bias": torch.ones(1)},
            "has layers.0.*; expected weight",
        ),
        ({}, "has nothing; expected"),
        ([1], "is no state dict"),
    ],
)
def test_another_layout_is_refused(tmp_path: Path, tensors: object, says: str) -> None:
    torch.save(tensors, tmp_path / "head.pth")
    with pytest.raises(PermanentError, match=rf"^aesthetic .*head\.pth: {says}") as error:
        load_linear(str(tmp_path / "head.pth"), "aesthetic")
    assert "\n" not in str(error.value)


def test_the_head_of_another_clip_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(WIDTH, 1).state_dict(), tmp_path / "head.pth")
    score = load_linear(str(tmp_path / "head.pth"), "aesthetic")
    with pytest.raises(PermanentError, match="takes embeddings of 16 numbers, the scorer's have 8; give the head"):
        score(np.ones((2, 8), np.float16))
