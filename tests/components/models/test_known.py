"""What is known of open_clip's models without open_clip, and how a file of weights is run as it was trained."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.transformer import QuickGELU

from components.base.errors import PermanentError
from components.models.clip import Clip, load_clip
from components.models.known import LIST, KnownModel, doubt, known_models, published_tag, tag_of
from components.storage.fingerprint import model_fingerprint
from tests.components.models.tiny import CLIP, pixels, save_open_clip

MEAN = {"mean": [0.5] * 3, "std": [0.5] * 3}


def test_the_list_is_open_clips() -> None:
    """`python -m components.models.list_known` writes it."""
    program = "from components.models.list_known import written; print(written(), end='')"  # no model of other tests
    listed = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert LIST.read_text(encoding="utf-8") == listed


def test_names_and_tags() -> None:
    assert tag_of("ViT-L-14", "openai") == tag_of("ViT-L-14", "OpenAI") == "openai"
    assert tag_of("ViT-B-32", "laion2b-s34b-b79k") == "laion2b_s34b_b79k"  # as open_clip reads it
    assert tag_of("ViT-L-14", "opnai") is tag_of("ViT-L-41", "openai") is None
    assert all(name.startswith("coca") for name, model in known_models().items() if model.captions)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP that was trained with QuickGELU and images prepared otherwise than CLIP's; `tiny-gelu` is its name
    without, as ViT-L-14 is that of OpenAI's."""
    root = tmp_path_factory.mktemp("quick")
    save_open_clip(root / "tiny-gelu", CLIP)
    return save_open_clip(root / "tiny-trained", {**CLIP, "quick_gelu": True}, MEAN)


def has_quick_gelu(clip: Clip) -> bool:
    return any(isinstance(module, QuickGELU) for module in clip.module.modules())


def test_weights_with_their_config_beside_them_are_run_as_they_were_trained(quick: Path) -> None:
    """As `hf download` leaves them: the file alone has neither the activation nor the mean."""
    expected = load_clip(str(quick))
    assert has_quick_gelu(expected)
    found = load_clip("tiny-gelu", str(quick / "open_clip_model.safetensors"))
    assert np.array_equal(found.embed_images(pixels(3)), expected.embed_images(pixels(3)))
    assert np.array_equal(found.embed_texts(["a cat"]), expected.embed_texts(["a cat"]))
    assert found.preprocess == expected.preprocess


def test_that_config_is_part_of_their_name(quick: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(quick, tmp_path / "quick"))
    weights = str(folder / "open_clip_model.safetensors")
    before = model_fingerprint(weights)
    (folder / "README.md").write_text("# QuickGELU")
    assert model_fingerprint(weights) == before
    (folder / "open_clip_config.json").unlink()
    assert model_fingerprint(weights) != before


def test_weights_trained_with_gelu_are_not_run_with_quick_gelu(quick: Path) -> None:
    gelu = quick.parent / "tiny-gelu" / "open_clip_model.safetensors"
    with pytest.raises(PermanentError, match="were trained with GELU; give model tiny-trained"):
        load_clip("tiny-trained", str(gelu))


def test_weights_of_which_nothing_is_known_are_said(
    quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The architecture alone decides then, as of ViT-L-14 whose tag openai is special."""
    alone = Path(shutil.copyfile(quick / "open_clip_model.safetensors", tmp_path / "alone.safetensors"))
    known = dict(known_models())
    known |= {name: KnownModel(False, ("openai",), ("openai",), {}) for name in ("tiny-gelu", "tiny-gelu-quickgelu")}
    monkeypatch.setattr("components.models.known.known_models", lambda: known)
    with caplog.at_level(logging.WARNING):
        assert not has_quick_gelu(load_clip("tiny-gelu", str(alone)))
    said = doubt("tiny-gelu", str(alone))
    assert said
    assert f"weights {alone}: nothing says how they were trained" in said
    assert said.endswith("with QuickGELU the model is tiny-gelu-quickgelu")
    assert said in caplog.text
    assert doubt("tiny-gelu", str(quick / "open_clip_model.safetensors")) is doubt("tiny-gelu", "openai") is None


def test_which_weights_are_in_doubt(tmp_path: Path) -> None:
    for name in ("mine.pt", "ViT-B-32.pt", "vit_b_32-quickgelu-laion400m_e31-d867053b.pt"):
        (tmp_path / name).write_bytes(b"x")
    assert "ViT-L-14-quickgelu" in str(doubt("ViT-L-14", str(tmp_path / "mine.pt")))
    assert "openai" in str(doubt("ViT-B-32", str(tmp_path / "ViT-B-32.pt")))  # a name that anyone gives
    assert doubt("ViT-L-14-quickgelu", str(tmp_path / "mine.pt")) is None
    published = tmp_path / "vit_b_32-quickgelu-laion400m_e31-d867053b.pt"
    assert doubt("ViT-B-32", str(published)) is None
    assert published_tag("ViT-B-32", published) == "laion400m_e31"
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"quick_gelu": True}}))
    assert doubt("ViT-L-14", str(tmp_path / "mine.pt")) is None


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
def test_a_program_with_weights_in_it_is_refused(quick: Path, tmp_path: Path) -> None:
    """OpenAI's own files are such archives."""
    with torch.no_grad():
        torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "ViT-L-14.pt")
    for tried in (doubt, load_clip):
        with pytest.raises(PermanentError, match=r"ViT-L-14\.pt: is an archive of TorchScript.*give the tag"):
            tried("tiny-gelu", str(tmp_path / "ViT-L-14.pt"))
