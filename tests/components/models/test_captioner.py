"""Captioners through load_captioner: real formats, keyed captions, clear errors."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models
from transformers import AutoConfig, BertConfig, BlipForQuestionAnswering, PreTrainedTokenizerFast
from transformers.models.blip.image_processing_blip import BlipImageProcessor
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from components.base.errors import PermanentError
from components.engine.images import Geometry, decode
from components.models import blip, coca
from components.models.captioner import Captioner, Sampling
from components.models.captioners import load_captioner
from components.models.checks import check_captioner
from components.models.sampling import draw, row_keys
from tests.components.models.tiny import CLIP, COCA, SIDE, pixels, save_blip, save_blip2, save_open_clip

UIDS = [f"{i:032x}" for i in range(12)]
KINDS: dict[str, Callable[[Path], Path]] = {
    "blip": save_blip,
    "blip2-opt": save_blip2,
    "blip2-t5": lambda folder: save_blip2(folder, "t5"),
    "coca": lambda folder: save_open_clip(folder, COCA),
}
SHORT = Sampling(temperature=1.0, top_k=50, min_length=3, max_length=12)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("captioners")
    return {kind: save(root / f"tiny-{kind}") for kind, save in KINDS.items()}


@pytest.fixture(params=KINDS)
def captioner(folders: dict[str, Path], request: pytest.FixtureRequest) -> Captioner:
    return load_captioner(str(folders[request.param]), sampling=SHORT)


def test_captions_are_plain_text(captioner: Captioner) -> None:
    captions = captioner.generate(pixels(12), UIDS, "column")
    assert len(captions) == 12
    assert len(set(captions)) == 12
    for caption in captions:
        assert caption == " ".join(caption.split())
        assert caption
        assert not any(special in caption for special in ("[", "<image>", "<start_of_text>", "<end_of_text>"))


def test_captions_do_not_depend_on_the_batch(captioner: Captioner) -> None:
    images = pixels(12)
    whole = captioner.generate(images[:4], UIDS[:4], "column")
    pairs = [c for i in (0, 2) for c in captioner.generate(images[i : i + 2], UIDS[i : i + 2], "column")]
    single = [captioner.generate(images[i : i + 1], UIDS[i : i + 1], "column")[0] for i in range(4)]
    mixed = captioner.generate(images[[7, 2, 0]], [UIDS[i] for i in (7, 2, 0)], "column")
    assert whole == pairs == single
    assert mixed[1:] == [whole[2], whole[0]]


def test_captions_depend_on_column_and_uid_and_image(captioner: Captioner) -> None:
    one = np.repeat(pixels(1), 4, axis=0)
    base = captioner.generate(one, UIDS[:4], "column")
    assert len(set(base)) > 1
    assert captioner.generate(one, UIDS[:4], "column") == base
    assert captioner.generate(one, UIDS[:4], "another") != base
    assert captioner.generate(pixels(4, seed=9), UIDS[:4], "column") != base


def test_nothing_to_caption(captioner: Captioner) -> None:
    assert captioner.generate(pixels(0), [], "column") == []


@pytest.mark.parametrize("kind", ["blip", "blip2-opt", "blip2-t5"])
def test_lengths_count_the_captions_tokens(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """Every token of the tiny vocabulary but the special ones is a word, and the special ones are rare."""
    sampling = Sampling(temperature=2.0, top_k=1000, min_length=6, max_length=9)
    captions = load_captioner(str(folders[kind]), sampling=sampling).generate(
        pixels(60), list(map(str, range(60))), "c"
    )
    lengths = {len(c.split()) for c in captions}
    assert max(lengths) == 9
    assert min(lengths) >= 5  # one token of a caption may be another special one, which is no word


def test_a_captioner_that_wants_to_stop_gets_the_minimum_length(tmp_path: Path) -> None:
    folder = save_blip(tmp_path / "eager", end_bias=100.0)
    for minimum in (1, 5):
        sampling = Sampling(1.0, 50, minimum, 12)
        captions = load_captioner(str(folder), sampling=sampling).generate(pixels(6), UIDS[:6], "column")
        # one of the tokens may be another special one, which is no word
        assert max(len(c.split()) for c in captions) == minimum


def test_coca_lengths_leave_out_start_and_end(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    found = load_captioner(str(folders["coca"]), sampling=SHORT)
    assert isinstance(found, coca.CocaCaptioner)
    captions: list[list[int]] = []
    monkeypatch.setattr(found.tokenizer, "decode", lambda tokens: captions.append(tokens) or "x")
    found.generate(pixels(12), UIDS, "column")
    assert {len(c) for c in captions} == {12}  # the end token is one of 49,408: never drawn early by this model
    forward = found.module.forward

    def eager(*args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        if "logits" in out:
            out["logits"][:2, :, found.end] = 1000.0  # the first two that go on end
        return out

    captions.clear()
    monkeypatch.setattr(found.module, "forward", eager)
    found.generate(pixels(12), UIDS, "column")
    assert [len(c) for c in captions] == [3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8]
    assert not {found.start, found.end, 0} & {token for c in captions for token in c}


def test_coca_captions_that_end_leave_the_others_alone(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: Any = load_captioner(str(folders["coca"]), sampling=SHORT)
    forward = found.module.forward

    def ending(image: Any, prefix: Any = None, *args: Any, **kwargs: Any) -> Any:
        out = forward(image, prefix, *args, **kwargs)
        if prefix is not None and prefix.shape[1] > 1:
            out["logits"][prefix[:, 1] % 7 + 3 < prefix.shape[1], :, found.end] = 1000.0  # by its own first token
        return out

    monkeypatch.setattr(found.module, "forward", ending)
    images = pixels(12)
    whole = found.generate(images, UIDS, "column")
    assert whole == [found.generate(images[i : i + 1], UIDS[i : i + 1], "column")[0] for i in range(12)]
    assert len({len(found.tokenizer.encode(c)) for c in whole}) > 2


def test_the_prompt_is_no_part_of_the_caption(folders: dict[str, Path], tmp_path: Path) -> None:
    """Even where the tokenizer doesn't know the start token for a special one."""
    text = json.loads((folders["blip"] / "config.json").read_text())["text_config"]
    folder = edited(folders["blip"], tmp_path / "start", text_config=text | {"bos_token_id": 10})
    captions = load_captioner(str(folder), sampling=Sampling(1.0, 50, 6, 6)).generate(pixels(12), UIDS, "column")
    assert max(len(c.split()) for c in captions) == 6


def test_blip_draws_from_its_own_logits_at_every_step(folders: dict[str, Path]) -> None:
    """Against a loop without generate and without its cache."""
    found: Any = load_captioner(str(folders["blip"]), sampling=SHORT)
    images, keys = pixels(5), row_keys("column", UIDS[:5])
    with torch.inference_mode():
        states = found.model.vision_model(found.preprocess.tensor(images, torch.device("cpu"))).last_hidden_state
        tokens = torch.ones(5, 1, dtype=torch.long)  # the start token
        for step in range(SHORT.max_length):
            logits = found.model.text_decoder(tokens, encoder_hidden_states=states).logits[:, -1]
            if step < SHORT.min_length:
                logits[:, 2] = -torch.inf
            tokens = torch.cat([tokens, draw(logits, keys, step, SHORT.temperature, SHORT.top_k)[:, None]], 1)
    rows = [row[1 : row.index(2)] if 2 in row else row[1:] for row in tokens.tolist()]
    expected = found.tokenizer.batch_decode(rows, skip_special_tokens=True)
    assert found.generate(images, UIDS[:5], "column") == expected


def test_coca_draws_from_its_own_logits_at_every_step(folders: dict[str, Path]) -> None:
    """Against a plain loop over single images: open_clip's own generate doesn't run beside transformers 5."""
    found: Any = load_captioner(str(folders["coca"]), sampling=SHORT)
    images, keys, expected = pixels(4), row_keys("column", UIDS[:4]), []
    for row in range(4):
        image, tokens = found.preprocess.tensor(images[row : row + 1], torch.device("cpu")), torch.tensor([[49406]])
        for step in range(SHORT.max_length):
            with torch.no_grad():
                logits = found.module(image, tokens, output_labels=False)["logits"][:, -1]
            logits[:, [0, 49406, *([49407] if step < SHORT.min_length else [])]] = -torch.inf
            token = draw(logits, keys[row : row + 1], step, SHORT.temperature, SHORT.top_k)
            tokens = torch.cat([tokens, token[:, None]], 1)
        assert 49407 not in tokens
        expected.append(" ".join(open_clip.decode(tokens[0, 1:]).split()))
    assert found.generate(images, UIDS[:4], "column") == expected


def test_coca_by_open_clips_name_and_tag(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    weights = folders["coca"] / "open_clip_model.safetensors"
    tag = {"tiny": {"file": str(weights)}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-coca", tag)
    expected = load_captioner(str(folders["coca"]), sampling=SHORT).generate(pixels(2), UIDS[:2], "column")
    for name in ("open_clip:tiny-coca/tiny", f"open_clip:tiny-coca/{weights}"):
        assert load_captioner(name, sampling=SHORT).generate(pixels(2), UIDS[:2], "column") == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_runs_and_keeps_to_the_batch_rule(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """What a GPU does, run on the CPU: mostly the float32 caption up to where two logits are close."""
    monkeypatch.setattr(blip, "generation_dtype", lambda device: dtype)
    monkeypatch.setattr(coca, "half_precision", lambda device, _: torch.autocast("cpu", dtype))
    for folder in folders.values():
        found = load_captioner(str(folder), sampling=SHORT)
        captions = found.generate(pixels(4), UIDS[:4], "column")
        assert all(captions)
        assert len(set(captions)) == 4


def test_decoding_and_normalising_is_blips_processor(folders: dict[str, Path], tmp_path: Path) -> None:
    values = {"size": {"height": 24, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 2}
    odd = save_blip(tmp_path / "odd", values)
    for folder in (folders["blip"], odd):
        found = load_captioner(str(folder), sampling=SHORT)
        exact = BlipImageProcessorPil.from_pretrained(folder)
        default = BlipImageProcessor.from_pretrained(folder)
        for size in [(32, 24), (50, 40), (40, 50), (300, 37), (17, 23)]:
            # no extreme contrast: the two backends clip overshoots between their passes in another order
            image = Image.fromarray(np.random.default_rng(0).integers(64, 192, (*size[::-1], 3), dtype=np.uint8))
            sink = io.BytesIO()
            image.save(sink, "PNG")
            ours = found.preprocess.tensor(decode(sink.getvalue(), found.geometry)[None], torch.device("cpu"))[0]
            level = 1.01 / 255 / min(exact.image_std)  # of 255: their backends round otherwise, too
            for theirs in (exact(image)["pixel_values"][0], default(image, return_tensors="pt")["pixel_values"][0]):
                torch.testing.assert_close(ours, torch.as_tensor(np.asarray(theirs)), rtol=0, atol=level)
    assert found.geometry == Geometry((24, 32), "squash", "bilinear")


def test_out_of_memory_halves_the_batch(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    found: Any = load_captioner(str(folders["blip"]), sampling=SHORT)
    expected, generate = found.generate(pixels(5), UIDS[:5], "column"), found.model.generate

    def small_gpu(pixel_values: torch.Tensor, **options: Any) -> torch.Tensor:
        if len(pixel_values) > 2:
            raise torch.OutOfMemoryError
        return generate(pixel_values=pixel_values, **options)

    monkeypatch.setattr(found.model, "generate", small_gpu)
    assert found.generate(pixels(5), UIDS[:5], "column") == expected


def test_weights_that_give_nan_are_an_error(captioner: Any) -> None:
    for parameter in (captioner.model if hasattr(captioner, "model") else captioner.module).parameters():
        parameter.data.fill_(float("nan"))
    with pytest.raises(PermanentError, match="not finite"):
        captioner.generate(pixels(2), UIDS[:2], "column")


def edited(folder: Path, to: Path, **values: Any) -> Path:
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text()) | values
    (to / "config.json").write_text(json.dumps(config))
    return to


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("/nowhere/blip", "no such folder"),
        ("./nowhere", "no such folder"),
        ("{empty}", "can't be loaded"),
        ("{bert}", "is a bert model; supported are blip, blip-2 and open_clip's CoCa"),
        ("{answering}", r"weights are missing \(text_decoder"),
        ("{no_index}", "no image_token_index"),
        ("{clip}", "is a CLIP, which has no text decoder"),
        ("open_clip:coca_ViT-L-14", "expected open_clip:<model>/<pretrained tag or checkpoint file>"),
        ("open_clip:coca_ViT-L-14/nonsense", "no weights nonsense; give a checkpoint file or one of laion2b_s13b_b90k"),
        ("open_clip:nonsense/tag", "no model of this name"),
        ("{no_tokenizer}", r"its tokenizer has \d tokens, the model 204"),
        ("{crop}", "its image processor is not BLIP's"),
    ],
)
def test_a_model_that_can_not_caption(folders: dict[str, Path], tmp_path: Path, model: str, message: str) -> None:
    BertConfig().save_pretrained(tmp_path / "bert")
    answering = BlipForQuestionAnswering(AutoConfig.from_pretrained(folders["blip"]))
    state = {k: v for k, v in answering.state_dict().items() if "text_decoder" not in k}
    answering.save_pretrained(tmp_path / "answering", state_dict=state)
    edited(folders["blip2-opt"], tmp_path / "no_index", image_token_index=None)
    for file in edited(folders["blip"], tmp_path / "no_tokenizer").glob("tokenizer*"):
        file.unlink()
    save_blip(tmp_path / "crop", {"size": {"height": SIDE, "width": SIDE}, "do_center_crop": True, "crop_size": SIDE})
    save_open_clip(tmp_path / "clip", CLIP)
    (tmp_path / "empty").mkdir()
    names = ("bert", "answering", "no_index", "no_tokenizer", "crop", "clip", "empty")
    name = model.format(**{n: tmp_path / n for n in names})
    with pytest.raises(PermanentError, match=message) as caught:
        load_captioner(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "most"), [("blip", 48), ("blip2-opt", 60), ("coca", 24)])
def test_the_longest_caption_a_model_has_positions_for(folders: dict[str, Path], kind: str, most: int) -> None:
    sampling = Sampling(1.0, 50, most, most)
    captions = load_captioner(str(folders[kind]), sampling=sampling).generate(pixels(1), UIDS[:1], "column")
    assert captions[0]
    with pytest.raises(PermanentError, match=rf"maxLength {most + 1} is above \w+ {most} positions"):
        load_captioner(str(folders[kind]), sampling=Sampling(1.0, 50, 1, most + 1))


def test_open_clip_takes_no_revision(folders: dict[str, Path]) -> None:
    with pytest.raises(PermanentError, match="takes no revision"):
        load_captioner(str(folders["coca"]), "main")


@pytest.mark.parametrize("kind", ["blip", "blip2-opt", "blip2-t5"])
def test_a_captioner_without_a_token_that_ends_captions(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """All its captions would be as long as they may; BLIP's end in a TypeError."""
    config = json.loads((folders[kind] / "config.json").read_text())
    for key in ("eos_token_id", "sep_token_id"):
        config["text_config"][key] = None
    folder = edited(folders[kind], tmp_path / "endless", text_config=config["text_config"])
    with pytest.raises(PermanentError, match=r"has no text_config\.(sep|eos)_token_id, the token that ends") as caught:
        load_captioner(str(folder))
    assert "\n" not in str(caught.value)
    [finding] = check_captioner(str(folder), None, "spec.columns[0].caption")
    assert finding.is_problem
    assert "the token that ends a caption" in finding.text


def test_a_coca_whose_tokenizer_ends_no_text(tmp_path: Path) -> None:
    folder = save_open_clip(tmp_path / "tiny-endless", COCA)
    whole = json.loads((folder / "open_clip_config.json").read_text())
    whole["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "its own"
    (folder / "open_clip_config.json").write_text(json.dumps(whole))
    words = Tokenizer(models.WordLevel({"[BOS]": 0, "[PAD]": 1, "cat": 2}, unk_token="[PAD]"))
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="[BOS]", pad_token="[PAD]").save_pretrained(folder)
    with pytest.raises(PermanentError, match="its tokenizer has no token that ends a text"):
        load_captioner(str(folder), sampling=SHORT)
