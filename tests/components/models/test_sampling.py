"""Keyed sampling: the right distribution, and nothing but (column, uid, step, token) decides."""

from __future__ import annotations

import math

import pytest
import torch

from components.base.errors import PermanentError
from components.models.sampling import KeyedSampler, draw, gumbel, mix64, row_keys

WORD = (1 << 64) - 1


def test_mix64_is_splitmix64() -> None:
    # First outputs of the reference C code for seed 0; its state grows by the golden gamma.
    gamma = 0x9E3779B97F4A7C15
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    states = torch.tensor([(i * gamma & WORD) - ((i * gamma & WORD) >> 63 << 64) for i in range(4)])
    assert [x & WORD for x in mix64(states).tolist()] == expected


def test_noise_is_gumbel_and_finite() -> None:
    keys, tokens = row_keys("column", [str(i) for i in range(2000)]), torch.arange(50).expand(2000, 50)
    noise = gumbel(keys, 3, tokens)
    assert noise.isfinite().all()
    n = noise.numel()
    # standard Gumbel: mean is Euler's constant, variance pi^2 / 6; five standard errors
    assert abs(noise.mean().item() - 0.5772157) < 5 * math.sqrt(1.6449341 / n)
    assert abs(noise.var().item() - 1.6449341) < 5 * math.sqrt(4.4 * 1.6449341**2 / n)


@pytest.mark.parametrize(("temperature", "top_k"), [(0.5, 5), (0.75, 8), (1.5, 20)])
def test_draws_follow_the_softmax_of_the_top_k(temperature: float, top_k: int) -> None:
    logits = torch.randn(20, generator=torch.Generator().manual_seed(1)) * 2
    draws = 20_000
    keys = row_keys("column", [f"{i:032x}" for i in range(draws)])
    counts = torch.bincount(draw(logits.expand(draws, 20), keys, 0, temperature, top_k), minlength=20)
    kept = logits.topk(top_k).indices
    expected = torch.zeros(20, dtype=torch.float64)
    expected[kept] = (logits[kept].double() / temperature).softmax(0) * draws
    assert counts[expected == 0].sum() == 0
    likely = expected > 5
    chi_square = ((counts[likely] - expected[likely]) ** 2 / expected[likely]).sum().item()
    freedom = int(likely.sum()) - 1
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom)


def test_a_draw_depends_on_its_own_row_alone() -> None:
    uids = [f"{i:032x}" for i in range(64)]
    logits = torch.randn(64, 100, generator=torch.Generator().manual_seed(2))
    whole = draw(logits, row_keys("column", uids), 7, 1.0, 50)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(3))
    shuffled = draw(logits[order], row_keys("column", [uids[i] for i in order]), 7, 1.0, 50)
    assert torch.equal(shuffled, whole[order])
    single = [draw(logits[i : i + 1], row_keys("column", uids[i : i + 1]), 7, 1.0, 50).item() for i in range(64)]
    assert single == whole.tolist()


def test_step_uid_and_column_each_change_the_noise() -> None:
    tokens = torch.arange(50)[None]
    base = gumbel(row_keys("column", ["a"]), 0, tokens)
    others = [
        gumbel(row_keys("column", ["a"]), 1, tokens),
        gumbel(row_keys("column", ["b"]), 0, tokens),
        gumbel(row_keys("other", ["a"]), 0, tokens),
    ]
    assert torch.equal(base, gumbel(row_keys("column", ["a"]), 0, tokens))
    for other in others:
        assert not (base == other).any()
        assert abs(torch.corrcoef(torch.stack([base[0], other[0]]))[0, 1]) < 0.5


def test_consecutive_steps_and_rows_are_uncorrelated() -> None:
    keys, token = row_keys("column", [str(i) for i in range(5000)]), torch.full((5000, 1), 17)
    first, second = gumbel(keys, 0, token).squeeze(), gumbel(keys, 1, token).squeeze()
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 5 / math.sqrt(5000)
    assert abs(torch.corrcoef(torch.stack([first[1:], first[:-1]]))[0, 1]) < 5 / math.sqrt(5000)


def test_low_temperature_is_greedy_and_top_1_too() -> None:
    logits = torch.randn(200, 30, generator=torch.Generator().manual_seed(4))
    keys = row_keys("column", [str(i) for i in range(200)])
    assert torch.equal(draw(logits, keys, 0, 1e-4, 30), logits.argmax(-1))
    assert torch.equal(draw(logits, keys, 0, 10.0, 1), logits.argmax(-1))


def test_forbidden_tokens_are_never_drawn() -> None:
    logits = torch.zeros(500, 4)
    logits[:, [0, 3]] = -torch.inf
    drawn = draw(logits, row_keys("column", [str(i) for i in range(500)]), 0, 1.0, 50)
    assert set(drawn.tolist()) == {1, 2}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused(bad: float) -> None:
    logits = torch.zeros(2, 4)
    logits[1, 2] = bad
    with pytest.raises(PermanentError, match="logits at token 6 are not finite"):
        draw(logits, row_keys("column", ["a", "b"]), 6, 1.0, 2)


def test_the_processor_leaves_one_token_and_counts_from_the_prompt() -> None:
    logits = torch.randn(3, 40, generator=torch.Generator().manual_seed(5))
    keys = row_keys("column", ["a", "b", "c"])
    sampler = KeyedSampler(keys, 0.75, 10)
    for step in range(3):
        scores = sampler(torch.zeros(3, 9 + step, dtype=torch.long), logits)
        assert (scores.isfinite().sum(-1) == 1).all()
        assert torch.equal(scores.argmax(-1), draw(logits, keys, step, 0.75, 10))
