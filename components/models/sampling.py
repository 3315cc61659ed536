"""Sampling whose randomness depends on the sample alone: Gumbel noise keyed by (column, uid, step, token).

argmax(logits / T + Gumbel) over the top-K tokens draws from softmax(top-K logits / T), so a caption depends on no
batch, order, worker or random state. The noise is made by integer hashing, the same on every device; only its
logarithm may differ in the last bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from transformers import LogitsProcessor

from components.base.errors import PermanentError

# splitmix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014), as signed 64-bit integers
_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def row_keys(column_hash: str, uids: Sequence[str]) -> torch.Tensor:
    """Return (B,) int64 keys, one per sample of a column."""
    digests = (hashlib.sha256(f"{column_hash}/{uid}".encode()).digest() for uid in uids)
    return torch.tensor([int.from_bytes(d[:8], "little", signed=True) for d in digests], dtype=torch.int64)


def gumbel(keys: torch.Tensor, step: int, tokens: torch.Tensor) -> torch.Tensor:
    """Return standard Gumbel noise, a function of its arguments alone.

    Args:
        keys: (B,) int64, of row_keys.
        step: how many tokens the caption has already.
        tokens: (B, K) int64, token ids.

    Returns:
        (B, K) float64, finite.
    """
    rows = mix64(keys ^ mix64(torch.tensor(step, device=keys.device)))  # (B,)
    bits = _shift(mix64(rows[:, None] ^ mix64(tokens)), 12)  # (B, K), 52 bits: + 0.5 is exact in a float64
    uniform = (bits.double() + 0.5) * 2.0**-52  # in (0, 1), both ends excluded
    return -torch.log(-torch.log(uniform))


def draw(logits: torch.Tensor, keys: torch.Tensor, step: int, temperature: float, top_k: int) -> torch.Tensor:
    """Draw one token per row.

    Args:
        logits: (B, V), −inf where a token is forbidden.
        keys: (B,) int64, of row_keys.
        step: how many tokens the caption has already.

    Returns:
        (B,) int64 token ids.

    Raises:
        PermanentError: logits are not finite.
    """
    values, tokens = logits.float().topk(min(top_k, logits.shape[-1]))  # (B, K)
    if not bool(values[:, 0].isfinite().all()):  # topk puts NaN first
        raise PermanentError(
            f"captioner: its logits at token {step} are not finite; its weights are broken, or overflow in float16"
        )
    best = (values.double() / temperature + gumbel(keys, step, tokens)).argmax(-1, keepdim=True)
    return tokens.gather(-1, best).squeeze(-1)


class KeyedSampler(LogitsProcessor):  # type: ignore[misc]  # transformers has no types
    """`draw` for one call of transformers' generate, with do_sample=False: every other token gets −inf.

    It runs after generate's own processors, such as the minimum length.
    """

    def __init__(self, keys: torch.Tensor, temperature: float, top_k: int) -> None:
        self.keys, self.temperature, self.top_k = keys, temperature, top_k
        self.prompt: int | None = None
        """Tokens before the caption; None before the first step."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self.prompt is None:
            self.prompt = input_ids.shape[1]
        token = draw(scores, self.keys, input_ids.shape[1] - self.prompt, self.temperature, self.top_k)
        return torch.full_like(scores, float("-inf")).scatter_(1, token[:, None], 0.0)


def mix64(x: torch.Tensor) -> torch.Tensor:
    """Return splitmix64's output for the state x: a bijection of the 64-bit integers. int64, wraps around."""
    x = x + _GAMMA
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def _shift(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift to the right logically; torch's own shift repeats the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
