"""Heads in LAION's layouts give what LAION's own modules give, and anything else is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn

from components.base.errors import PermanentError
from components.stages.screen.head import load_head
from tests.components.stages.screen.models import Named, Numbered, logistic

WIDTH = 16


def embeddings(count: int = 40, width: int = WIDTH) -> NDArray[np.float16]:
    vectors = np.random.default_rng(0).normal(size=(count, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


@pytest.mark.parametrize("module", [Named, Numbered])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_head_gives_what_its_module_gives(tmp_path: Path, module: type[nn.Module], suffix: str) -> None:
    torch.manual_seed(1)
    head, file = module(WIDTH).eval(), tmp_path / f"head.{suffix}"
    for weights in head.parameters():
        weights.data.mul_(4)  # so that scores differ
    save_file(head.state_dict(), file) if suffix == "safetensors" else torch.save(head.state_dict(), file)
    with torch.inference_mode():
        expected = head(torch.from_numpy(embeddings()).float())[:, 0].numpy()
    found = load_head(str(file)).score(embeddings())
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert found.dtype == np.float32
    assert found.std() > 0.01, "a head that says the same of everything tests nothing"


def test_one_layer_is_a_logistic_regression(tmp_path: Path) -> None:
    file = logistic(tmp_path / "head.pth", torch.arange(4.0), -1.0)
    found = load_head(str(file)).score(np.eye(4, dtype=np.float16))
    np.testing.assert_allclose(found, 1 / (1 + np.exp(1 - np.arange(4))), rtol=1e-6)


def linear(name: str, inputs: int, outputs: int) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": torch.ones(outputs, inputs), f"{name}.bias": torch.zeros(outputs)}


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({}, "has nothing; expected linear_1"),
        ({"fc.weight": torch.ones(1, 4)}, "has fc.weight; expected"),
        ({**linear("linear_1", 4, 1), "fc.weight": torch.ones(1, 4)}, "has fc.weight; expected"),
        ({**linear("linear_1", 4, 2), **linear("layers.0", 2, 1)}, "expected linear_1"),
        (linear("linear_1", 4, 2), "has layers of 4 to 2; expected"),
        ({**linear("layers.0", 4, 3), **linear("layers.3", 2, 1)}, "has layers of 4 to 3, 2 to 1"),
        ({"linear_1.weight": torch.ones(1, 4)}, "lacks a whole linear_1"),
        ({**linear("linear_1", 4, 1), "norm.mean": torch.ones(3), "norm.variance": torch.ones(3)}, "has norm.mean of"),
        ([torch.ones(1)], "is no state dict"),
        ({"linear_1.weight": "x"}, "is no state dict"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, tensors: Any, says: str) -> None:
    torch.save(tensors, tmp_path / "head.pth")
    with pytest.raises(PermanentError, match=says):
        load_head(str(tmp_path / "head.pth"))


@pytest.mark.parametrize("name", ["head.pth", "head.safetensors"])
def test_a_broken_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"<html>not found</html>")
    with pytest.raises(PermanentError, match=rf"screen .*{name}: can't be loaded: "):
        load_head(str(tmp_path / name))


def test_the_head_of_another_clip_is_refused(tmp_path: Path) -> None:
    head = load_head(str(logistic(tmp_path / "head.pth", torch.ones(4), 0.0)))
    with pytest.raises(PermanentError, match="takes embeddings of 4 numbers, the scorer's have 16"):
        head.score(embeddings())


def test_a_score_that_is_no_number_is_refused(tmp_path: Path) -> None:
    head = load_head(str(logistic(tmp_path / "head.pth", torch.full((WIDTH,), torch.nan), 0.0)))
    with pytest.raises(PermanentError, match="gave a score that is not finite"):
        head.score(embeddings())
