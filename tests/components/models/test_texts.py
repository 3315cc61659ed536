"""Texts of any length through the tokenizers: bounded work, and the tokens that the tokenizer gives by itself."""

from __future__ import annotations

import random
import string
from pathlib import Path
from types import SimpleNamespace

import open_clip
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer

from components.miniature.build import WEIGHTS
from components.models.clip import load_clip
from components.models.texts import LONGEST, bounded, cut
from components.stages.train.trainer_patches import adapt
from tests.components.models.tiny import CLIP, save_open_clip

LETTERS = random.Random(0).choices(string.ascii_lowercase, k=30_000)
ONE_WORD = "".join(LETTERS)


class Merges(dict[tuple[str, str], int]):
    """The tokenizer's merges, which counts how often they are asked for: a measure of the work, on any machine."""

    asked = 0

    def get(self, *args: object) -> object:  # type: ignore[override]
        self.asked += 1
        return super().get(*args)  # type: ignore[call-overload]

    def __contains__(self, key: object) -> bool:
        self.asked += 1
        return super().__contains__(key)


@pytest.fixture(scope="module")
def plain() -> SimpleTokenizer:
    return SimpleTokenizer()


@pytest.fixture(scope="module")
def ours() -> SimpleTokenizer:
    return bounded(SimpleTokenizer())


def test_a_word_of_30000_letters_takes_little_work() -> None:
    """By itself the tokenizer looks up a merge some 40 million times: every pair again for every merge."""
    tokenizer = bounded(SimpleTokenizer())
    tokenizer.bpe_ranks = Merges(tokenizer.bpe_ranks)
    tokenizer([ONE_WORD])
    assert 0 < tokenizer.bpe_ranks.asked < 4 * LONGEST
    assert not any(len(word) > 1000 for word in tokenizer.cache)


@pytest.mark.parametrize(
    "alphabet", ["a", "ab", string.ascii_letters, string.punctuation, "éàü日本", "😂😍", "etaoin shrdlu", "a\n\t "]
)
def test_tokens_are_those_of_the_tokenizer_itself(alphabet: str, plain: SimpleTokenizer, ours: SimpleTokenizer) -> None:
    chance = random.Random(1)
    texts = ["".join(chance.choices(alphabet, k=chance.randint(1, 300))) for _ in range(12)]
    assert [ours.encode(text) for text in texts] == [plain.encode(text) for text in texts]
    assert ours(texts).tolist() == plain(texts).tolist()


@pytest.mark.parametrize("piece", ["a cat on a mat, ", "😂", "ab", " \n", "word" + " " * 300])
def test_what_the_context_cuts_anyway_changes_nothing(
    piece: str, plain: SimpleTokenizer, ours: SimpleTokenizer
) -> None:
    """Of one word the tokenizer itself is given a tenth, or it would take long: its tokens are the same."""
    text = piece * (3 * LONGEST // len(piece)) + "the end"
    given = text[: LONGEST // 10] if " " not in piece else text
    assert ours([text]).tolist() == plain([given]).tolist()
    other = f"local-dir:{WEIGHTS / 'scorer'}"  # by transformers
    assert bounded(open_clip.get_tokenizer(other))([text]).tolist() == open_clip.get_tokenizer(other)([text]).tolist()
    assert len(cut(text)) <= LONGEST


def test_clip_and_the_trainer_tokenize_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = load_clip(str(save_open_clip(tmp_path / "tiny-bounded", CLIP)))
    kept = torch.nn.parallel.DistributedDataParallel  # which is replaced for the whole process
    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", kept)
    trainer = SimpleNamespace(broadcast_object=None, get_tokenizer=open_clip.get_tokenizer)
    adapt(trainer)
    for tokenizer in (clip.tokenizer, trainer.get_tokenizer("ViT-B-32")):
        tokenizer.bpe_ranks = Merges(tokenizer.bpe_ranks)
        tokenizer([ONE_WORD])
        assert 0 < tokenizer.bpe_ranks.asked < 4 * LONGEST
