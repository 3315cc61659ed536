"""The name of what a model makes: by the files that are loaded, and by nothing else that lies in its folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from open_clip.factory import _find_checkpoint_in_dir
from transformers import BlipForConditionalGeneration

from components.miniature.build import WEIGHTS
from components.models.captioner import Sampling
from components.models.captioners import load_captioner
from components.models.clip import load_clip
from components.storage.fingerprint import model_fingerprint, path_fingerprint
from components.storage.model_files import find_checkpoint, loaded_files
from tests.components.models.tiny import CLIP, COCA, pixels, save_blip, save_blip2, save_open_clip

JUNK = {  # what no loader reads: it would end in an error
    ".cache/huggingface/download/config.json.metadata": b"a commit, an etag and the time of the last download",
    ".git/HEAD": b"ref: refs/heads/main",
    ".DS_Store": b"\0",
    "README.md": b"# A model",
    "LICENSE.txt": b"as is",
    "tf_model.h5": b"the weights, for TensorFlow",
    "pytorch_model.bin": b"the weights, as a pickle",
    "onnx/config.json": b"{",
    "training_args.bin": b"\0",
}


def in_parts(folder: Path) -> Path:
    """BLIP whose weights are cut into several files."""
    save_blip(folder)
    model = BlipForConditionalGeneration.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    return folder


def copied(folder: Path) -> Path:
    """The miniature's scorer, which has a tokenizer of its own."""
    return Path(shutil.copytree(WEIGHTS / "scorer", folder))


KINDS: dict[str, Callable[[Path], Path]] = {
    "blip": save_blip,
    "blip2": save_blip2,
    "parts": in_parts,
    "coca": lambda folder: save_open_clip(folder, COCA),
    "clip": lambda folder: save_open_clip(folder, CLIP),
    "clip-with-tokenizer": copied,
}


def outputs(folder: Path) -> list[str] | list[bytes]:
    """What the model says of some images."""
    if "clip" in folder.name:
        clip = load_clip(str(folder))
        images = pixels(2, clip.geometry.size[0])
        return [clip.embed_images(images).tobytes(), clip.embed_texts(["a red cat"]).tobytes()]
    captioner = load_captioner(str(folder), sampling=Sampling(1.0, 50, 2, 5))
    return captioner.generate(pixels(2), ["a", "b"], "column")


@pytest.mark.parametrize("kind", KINDS)
def test_a_models_name_is_that_of_what_is_loaded(kind: str, tmp_path: Path) -> None:
    folder = KINDS[kind](tmp_path / f"hashed-{kind}")
    before, said, files = model_fingerprint(str(folder)), outputs(folder), loaded_files(folder)
    for name, content in JUNK.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    assert model_fingerprint(str(folder)) == model_fingerprint(f"local-dir:{folder}") == before
    assert outputs(folder) == said
    alone = tmp_path / "alone" / folder.name
    for file in files:
        (alone / file.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, alone / file.relative_to(folder))
    assert outputs(alone) == said
    assert model_fingerprint(str(alone)) == before
    for file in files:
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert model_fingerprint(str(folder)) != before, file.name
        file.write_bytes(content)


def test_a_file_that_changes_what_is_loaded_changes_the_name(tmp_path: Path) -> None:
    """Weights that go before those that were loaded; another vocabulary."""
    folder = save_blip(tmp_path / "blip")
    tensors = BlipForConditionalGeneration.from_pretrained(folder).state_dict()
    (folder / "model.safetensors").rename(tmp_path / "kept")
    torch.save(tensors, folder / "pytorch_model.bin")
    pickled = model_fingerprint(str(folder))
    (tmp_path / "kept").rename(folder / "model.safetensors")
    named = {pickled, model_fingerprint(str(folder))}
    (folder / "added_tokens.json").write_text(json.dumps({"<x>": 204}))
    assert len({*named, model_fingerprint(str(folder))}) == 3


@pytest.mark.parametrize(
    "names",
    [
        ["open_clip_pytorch_model.bin", "open_clip_model.safetensors", "a.safetensors"],
        ["open_clip_pytorch_model.bin", "model.safetensors"],
        ["z.safetensors", "a.bin", "b.safetensors"],
        ["b.pth", "a.bin"],
        ["README.md"],
    ],
)
def test_weights_are_chosen_as_open_clip_chooses(names: list[str], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    expected = _find_checkpoint_in_dir(tmp_path)
    assert find_checkpoint(tmp_path) == (Path(expected) if expected else None)


def test_hidden_files_are_no_part_of_a_folder(tmp_path: Path) -> None:
    """Such as a folder of word lists that a filter reads."""
    (tmp_path / "words.txt").write_text("cat")
    before = path_fingerprint(str(tmp_path), "where")
    (tmp_path / ".DS_Store").write_bytes(b"\0")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git/HEAD").write_text("ref")
    assert path_fingerprint(str(tmp_path), "where") == before
    (tmp_path / "more.txt").write_text("dog")
    assert path_fingerprint(str(tmp_path), "where") != before
