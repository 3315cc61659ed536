"""CLIP through load_clip: open_clip's own numbers, unit vectors, clear errors."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU
from PIL import Image

from components.base.errors import PermanentError
from components.engine.images import Geometry, decode
from components.models import clip as module
from components.models.clip import Clip, load_clip
from tests.components.models.tiny import CLIP, pixels, save_open_clip

SIZES = [(32, 32), (50, 40), (40, 50), (200, 37), (37, 200), (300, 100), (17, 23), (641, 427), (33, 32), (512, 20)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_open_clip(tmp_path_factory.mktemp("clip") / "tiny-clip", CLIP)


@pytest.fixture(scope="module")
def clip(folder: Path) -> Clip:
    return load_clip(str(folder))


def photo(size: tuple[int, int]) -> Image.Image:
    """Smooth structure and noise: what resampling differs on."""
    noise = np.random.default_rng(size[0]).integers(0, 256, (size[1], size[0], 3))
    slope = np.linspace(0, 255, size[0])[None, :, None] * np.ones((size[1], 1, 3))
    return Image.fromarray(((noise + 2 * slope) / 3).astype(np.uint8))


def png(image: Image.Image) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()


def reference(folder: Path) -> tuple[Any, Any]:
    return open_clip.create_model_from_pretrained(f"local-dir:{folder}")


@pytest.mark.parametrize(
    "preprocess",
    [
        {},
        {"resize_mode": "squash", "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3},
        {"resize_mode": "longest", "fill_color": 127, "interpolation": "bicubic"},
        {"resize_mode": "shortest", "interpolation": "bilinear"},
    ],
)
def test_decoding_and_normalising_is_open_clips_transform(tmp_path: Path, preprocess: dict[str, Any]) -> None:
    folder = save_open_clip(tmp_path / "tiny-preprocess", CLIP, preprocess)
    clip, (_, transform) = load_clip(str(folder)), reference(folder)
    for size in SIZES:
        image = photo(size)
        ours = clip.preprocess.tensor(decode(png(image), clip.geometry)[None], torch.device("cpu"))[0]
        levels = (ours - transform(image)).abs() * 255 * torch.tensor(clip.preprocess.std)[:, None, None]
        assert levels.max() < 2.01, size  # of 255
        assert levels.mean() < 0.3, size  # where Pillow resizes columns before rows, a fifth differ by one


def test_embeddings_are_open_clips(folder: Path, clip: Clip) -> None:
    model, transform = reference(folder)
    images, texts = [photo((50, 40)), photo((40, 50))], ["a cat", "two dogs on a boat"]
    batch = np.stack([decode(png(image), clip.geometry) for image in images])
    with torch.no_grad():
        expected = model.encode_image(torch.stack([transform(i) for i in images]), normalize=True).numpy()
        expected_texts = model.encode_text(open_clip.get_tokenizer("ViT-B-32")(texts), normalize=True).numpy()
    assert clip.embed_images(batch).dtype == np.float16
    np.testing.assert_allclose(clip.embed_images(batch), expected, atol=2e-3)  # float16's rounding below 1 is 2.4e-4
    np.testing.assert_allclose(clip.embed_texts(texts), expected_texts, atol=1e-3)


def test_embeddings_are_unit_vectors_and_differ(clip: Clip) -> None:
    for found in (clip.embed_images(pixels(5)), clip.embed_texts(["a", "b", "c", "", "日本 🐎"])):
        assert found.shape == (5, 16)
        np.testing.assert_allclose(np.linalg.norm(found.astype(np.float32), axis=1), 1, atol=1e-3)
        assert len({row.tobytes() for row in found}) == 5


def test_a_text_is_cut_to_the_context(clip: Clip) -> None:
    long, longer = " ".join(["dog"] * 76), " ".join(["dog"] * 5000)
    assert np.array_equal(clip.embed_texts([long]), clip.embed_texts([longer]))


def test_nothing_to_embed(clip: Clip) -> None:
    assert len(clip.embed_texts([])) == len(clip.embed_images(pixels(0))) == 0


def test_read_only_pixels_are_taken_and_left_alone(clip: Clip) -> None:
    images = pixels(3)
    images.flags.writeable = False
    assert np.array_equal(clip.embed_images(images), clip.embed_images(images.copy()))
    assert np.array_equal(images, pixels(3))


@pytest.mark.parametrize("broken", [0.0, float("nan"), float("inf")])
def test_an_embedding_is_never_zero_or_nan(folder: Path, broken: float) -> None:
    clip = load_clip(str(folder))
    clip.module.visual.proj.data.fill_(broken)
    with pytest.raises(PermanentError, match="zero or not finite"):
        clip.embed_images(pixels(2))


def test_out_of_memory_halves_the_batch(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clip, encode, sizes = load_clip(str(folder)), None, []
    expected, encode = clip.embed_images(pixels(10)), clip.module.encode_image

    def small_gpu(images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        if len(images) > 3:
            raise torch.OutOfMemoryError
        return encode(images)

    monkeypatch.setattr(clip.module, "encode_image", small_gpu)
    np.testing.assert_allclose(clip.embed_images(pixels(10)), expected, atol=5e-4)
    clip.embed_images(pixels(4))
    assert sizes == [10, 5, 2, 2, 2, 2, 2, 2, 2]
    assert "10 samples don't fit into the GPU's memory, going on with 5" in caplog.text
    monkeypatch.setattr(clip.module, "encode_image", lambda _: (_ for _ in ()).throw(torch.OutOfMemoryError()))
    with pytest.raises(PermanentError, match="one sample does not fit"):
        clip.embed_images(pixels(2))


def test_weights_trained_with_quick_gelu_run_with_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenAI's tag on a plain model name: open_clip would warn and use GELU."""
    save_open_clip(tmp_path / "tiny-quick", CLIP)
    tag = {"file": str(tmp_path / "tiny-quick" / "open_clip_model.safetensors"), "quick_gelu": True}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-quick", {"openai": tag})
    found = load_clip("tiny-quick", "openai").module
    assert any(isinstance(m, QuickGELU) for m in found.modules())
    assert open_clip.pretrained.get_pretrained_cfg("ViT-L-14", "openai")["quick_gelu"]  # the paper's scorer needs it


def test_a_checkpoint_file_of_open_clips_trainer(folder: Path, clip: Clip, tmp_path: Path) -> None:
    state = {f"module.{k}": v for k, v in clip.module.state_dict().items()}
    torch.save({"epoch": 3, "name": "x", "state_dict": state}, tmp_path / "epoch_3.pt")
    expected = clip.embed_images(pixels(2))
    for model in ("tiny-clip", str(folder / "tiny-clip.json"), str(folder)):
        loaded = load_clip(model, str(tmp_path / "epoch_3.pt"))
        assert np.array_equal(loaded.embed_images(pixels(2)), expected)


@pytest.mark.parametrize(
    ("model", "weights", "message"),
    [
        ("/nowhere/clip", None, "no such folder"),
        ("local-dir:nowhere", None, "no such folder"),
        ("ViT-Z-99", "openai", "no model of this name"),
        ("ViT-L-14", "opnai", r"no weights opnai; give a checkpoint file or one of openai, laion400m_e31"),
        ("ViT-L-14", None, "no weights None; give a checkpoint file or one of openai"),
        ("{folder}", "openai", "brings its weights"),
        ("{empty}", None, "open_clip_config.json"),
        ("{bare}", None, "could not be loaded"),
    ],
)
def test_a_model_that_is_not_there(folder: Path, tmp_path: Path, model: str, weights: str | None, message: str) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "open_clip_config.json").write_bytes((folder / "open_clip_config.json").read_bytes())
    (tmp_path / "empty").mkdir()
    name = model.format(folder=folder, empty=tmp_path / "empty", bare=bare)
    with pytest.raises(PermanentError, match=message) as caught:
        load_clip(name, weights)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_weights_of_another_model(folder: Path, tmp_path: Path) -> None:
    torch.save({"state_dict": {"nonsense": torch.zeros(1)}}, tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("not a checkpoint")
    for file in ("other.pt", "text.pt"):
        with pytest.raises(PermanentError, match=rf"with weights .*{file}: can't be loaded"):
            load_clip("tiny-clip", str(tmp_path / file))


def test_a_crop_that_is_not_square_is_refused(tmp_path: Path) -> None:
    config = {**CLIP, "vision_cfg": {**CLIP["vision_cfg"], "image_size": [32, 64]}}
    with pytest.raises(PermanentError, match="crops to 32 × 64"):
        load_clip(str(save_open_clip(tmp_path / "tiny-wide", config)))


def test_half_precision_gives_the_same_embeddings(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's autocast, run on the CPU."""
    images, texts = clip.embed_images(pixels(8)), clip.embed_texts(["a cat", "a dog"])
    monkeypatch.setattr(module, "half_precision", lambda device: torch.autocast("cpu", torch.float16))
    assert (clip.embed_images(pixels(8)).astype(np.float32) * images).sum(1).min() > 0.999
    assert (clip.embed_texts(["a cat", "a dog"]).astype(np.float32) * texts).sum(1).min() > 0.999


def test_geometry(clip: Clip) -> None:
    assert clip.geometry == Geometry((32, 32), "crop", "bicubic", 0)
