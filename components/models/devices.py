"""Chooses device and precision, and cuts batches down to what the device's memory holds."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from components.base.errors import PermanentError

log = logging.getLogger(__name__)

T = TypeVar("T")


def pick_device() -> torch.device:
    """Return the first GPU that this process may use, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def generation_dtype(device: torch.device) -> torch.dtype:
    """Return a captioner's dtype: float32 on a CPU, bfloat16 on GPUs that compute in it (Ampere on), else float16."""
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def half_precision(device: torch.device, dtype: torch.dtype = torch.float16) -> torch.autocast:
    """Return autocast on a GPU, no-op on a CPU. float16 by default: CLIP's towers don't need bfloat16's range, and its
    8 bits of mantissa would show in a cosine's third digit."""
    return torch.autocast(device.type, dtype=dtype, enabled=device.type == "cuda" and dtype != torch.float32)


class Pieces:
    """Runs batches in pieces that fit into the device's memory, found by halving and remembered.

    A value depends on its own sample only, so cutting a batch changes nothing but the speed.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.size: int | None = None
        """Rows of one piece; None until memory ran out once."""

    def run(self, work: Callable[[slice], T], rows: int) -> list[T]:
        """Run `work` on consecutive pieces of `rows` and return the results.

        Raises:
            PermanentError: not even one row fits.
        """
        results: list[T] = []
        start = 0
        while start < rows:
            size = min(self.size or rows, rows - start)
            try:
                results.append(work(slice(start, start + size)))
                start += size
                continue
            except torch.OutOfMemoryError as error:
                if size == 1:
                    raise PermanentError(
                        f"{self.what}: one sample does not fit into the GPU's memory beside the model; "
                        "use a GPU with more memory or a smaller model"
                    ) from error
            self.size = size // 2  # outside the except block: the traceback holds the tensors that filled the memory
            torch.cuda.empty_cache()
            log.warning(
                "%s: %d samples don't fit into the GPU's memory, going on with %d; "
                "a lower spec.compute.batchSize avoids this",
                self.what,
                size,
                self.size,
            )
        return results
