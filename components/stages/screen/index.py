"""The index of a near-duplicate screen: embeddings that lie somewhere, and by which scorer they were made. No torch."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from components.base.addresses import parse_address
from components.base.errors import PermanentError
from components.base.hashing import content_hash
from components.recipe.scorer import Scorer
from components.storage.fingerprint import path_fingerprint
from components.storage.interface import Storage
from components.storage.opening import open_object, open_storage

ROWS = 16_384  # rows checked at once
KINDS = (".npy", ".parquet")
FIELD = "embedding"


def index_fingerprint(index: str, where: str) -> str:
    """Hash local files by content, a bucket's by names and sizes. Raises PermanentError if nothing is there."""
    scheme, place = parse_address(index)
    if scheme == "file":
        return path_fingerprint(place, where)
    storage, files = _files(index)
    return content_hash([(path, storage.size(path)) for path in files])


def read_index(index: str, scorer: Mapping[str, Any]) -> NDArray[Any]:
    """Read the embeddings, (N, D) float16 or float32.

    A .npy is a matrix (N, D) of float16 or float32; a .parquet has a field `embedding`, a list of such numbers (nulls
    are left out). A folder holds several; an embed column's folder says in column.json by which scorer it was made.

    Args:
        scorer: the parameters of the embed column that it is compared with.

    Raises:
        PermanentError: there is none, it is none, or it was made by another scorer.
    """
    storage, files = _files(index)
    _check_scorer(storage, index, scorer)
    parts = [part for path in files for part in _vectors(storage, path, f"screen {index}: {path}")]
    widths = {part.shape[1] for part in parts if len(part)}
    if len(widths) != 1:
        raise PermanentError(f"screen {index}: has embeddings of {sorted(widths)} numbers, expected one length")
    vectors: NDArray[Any] = np.concatenate([part for part in parts if len(part)])
    for start in range(0, len(vectors), ROWS):
        lengths = np.linalg.norm(vectors[start : start + ROWS].astype(np.float32), axis=1)
        if not (np.isfinite(lengths) & (lengths > 0)).all():
            raise PermanentError(f"screen {index}: an embedding is zero or not finite; make the index anew")
    return vectors


def _files(index: str) -> tuple[Storage, list[str]]:
    if index.endswith(KINDS):
        storage, name = open_object(index)
        files = [name] if storage.size(name) is not None else []
    else:
        storage = open_storage(index)
        files = sorted(entry.path for entry in storage.list() if entry.path.endswith(KINDS))
    if not files:
        raise PermanentError(f"screen {index}: there is no .npy or .parquet; give a file or a folder of embeddings")
    return storage, files


def _check_scorer(storage: Storage, index: str, scorer: Mapping[str, Any]) -> None:
    if index.endswith(KINDS) or storage.size("column.json") is None:
        return
    made_by = json.loads(storage.read("column.json")).get("params", {})
    if made_by.get("content") != scorer["content"]:
        raise PermanentError(
            f"screen {index}: was made by {_named(made_by)}, the recipe's scorer is {_named(scorer)}; make the index "
            "with this scorer"
        )


def _named(params: Mapping[str, Any]) -> str:
    """Return the scorer of an embed column for a message."""
    options = params.get("options", {})
    return f"{options.get('model', Scorer().model)}, weights {options.get('weights')}"


def _vectors(storage: Storage, path: str, what: str) -> Iterator[NDArray[Any]]:
    data = storage.read(path)
    try:
        if path.endswith(".npy"):
            yield _checked(np.load(io.BytesIO(data), allow_pickle=False), what)
            return
        column = pq.read_table(pa.BufferReader(data), columns=[FIELD]).column(FIELD)
    except (ValueError, EOFError, OSError, KeyError, pa.ArrowException) as error:
        raise PermanentError(f"{what}: can't be read as embeddings ({error}); expected a field {FIELD}") from error
    column = column.drop_null().combine_chunks()
    if not pa.types.is_fixed_size_list(column.type) and not pa.types.is_list(column.type):
        raise PermanentError(f"{what}: {FIELD} is {column.type}, expected lists of float16 or float32")
    widths = pc.list_value_length(column).unique().to_pylist()
    if len(widths) > 1:
        raise PermanentError(f"{what}: {FIELD} has lists of different lengths")
    if widths:
        yield _checked(column.flatten().to_numpy(zero_copy_only=False).reshape(-1, widths[0]), what)


def _checked(vectors: Any, what: str) -> NDArray[Any]:
    if getattr(vectors, "ndim", 0) != 2 or vectors.dtype not in (np.float16, np.float32):
        raise PermanentError(
            f"{what}: is {getattr(vectors, 'dtype', type(vectors))} of shape {getattr(vectors, 'shape', '?')}, "
            "expected a matrix (images, numbers) of float16 or float32"
        )
    found: NDArray[Any] = vectors
    return found
