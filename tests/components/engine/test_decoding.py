"""Decoding processes that die: one image is a reason, a starved machine is bad luck."""

from __future__ import annotations

import gc
import os
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from components.base.errors import TemporaryError
from components.engine.decoding import CHUNK, Decoders, pixels_of
from components.engine.images import Geometry, decode
from tests.pools import jpeg

CROP = Geometry((16, 16), "crop")


class Deadly(bytes):
    """Ends the process that unpacks it, as an image may that a decoder's C code stumbles over."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os._exit, (1,)


def decoded(images: list[bytes]) -> list[Any]:
    with Decoders(2) as decoders:
        chunks = [chunk for i in range(0, len(images), 20) for chunk in decoders.submit(images[i : i + 20], CROP)]
        return [pixels for chunk in chunks for pixels in pixels_of(chunk)]


@pytest.mark.slow
def test_an_image_that_kills_its_decoder_is_a_reason() -> None:
    images: list[bytes] = [jpeg(i) for i in range(60)]
    images[23] = Deadly(b"x")
    images[58] = Deadly(b"y")
    found = decoded(images)
    assert [i for i, value in enumerate(found) if isinstance(value, str)] == [23, 58]
    assert found[23] == "image that crashes the decoder"
    for i in (0, 22, 24, 59):
        np.testing.assert_array_equal(found[i], decode(images[i], CROP))


@pytest.mark.slow
def test_decoders_that_keep_dying_are_bad_luck() -> None:
    with pytest.raises(TemporaryError, match="decoding processes die"):
        decoded([Deadly(b"x")] * CHUNK)


@pytest.mark.parametrize("count", [0, 1])
def test_pixels_go_with_their_chunk(count: int) -> None:
    """Without the garbage collector, which counts objects and not megabytes."""
    with Decoders(count) as decoders:
        chunks = decoders.submit([jpeg()], CROP)
        assert len(pixels_of(chunks[0])) == 1
        future = weakref.ref(chunks[0].pixels)
        gc.disable()
        try:
            del chunks
            for _ in range(100):  # the pool's thread lets go of it a moment later
                if future() is None:
                    break
                time.sleep(0.02)
            assert future() is None
        finally:
            gc.enable()
