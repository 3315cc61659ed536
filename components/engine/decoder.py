"""A decoding process: takes images from a pipe, leaves their pixels in memory that it shares with its parent.

It is started as a program of its own, so that it has nothing of its parent's but this module and what that imports.
"""

from __future__ import annotations

import json
import mmap
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection

import numpy as np

from components.engine.images import Geometry, ImageError, Pixels, decode

Answer = Sequence[int] | str
"""The shape of an image's pixels, or the reason for having none."""


def decode_into(room: Pixels, images: list[bytes], geometry: Geometry) -> list[Answer]:
    """Decode images, each into its row of `room`: (N, H·W·3) uint8 of the geometry's size."""
    answers: list[Answer] = []
    for row, data in zip(room, images, strict=False):
        try:
            pixels = decode(data, geometry)
        except ImageError as error:
            answers.append(str(error))
        else:
            row[: pixels.size].reshape(pixels.shape)[:] = pixels
            answers.append(pixels.shape)
    return answers


def main() -> None:
    """Serve until the parent closes the pipe, or is gone."""
    pipe, memory = int(sys.argv[1]), int(sys.argv[2])
    room = np.frombuffer(mmap.mmap(memory, 0), np.uint8)
    connection = Connection(pipe)
    try:
        while True:
            images, geometry = connection.recv()
            connection.send_bytes(json.dumps(decode_into(rows(room, len(images)), images, geometry)).encode())
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def rows(room: Pixels, count: int) -> Pixels:
    """Return shared memory as (count, bytes of an image)."""
    return room[: room.size // count * count].reshape(count, -1)


if __name__ == "__main__":
    main()
