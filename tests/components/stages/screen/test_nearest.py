"""The highest cosine with an index: exact, from every kind of file, by the same scorer only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from components.base.errors import PermanentError
from components.engine.stage import Field
from components.stages.screen import nearest
from components.stages.screen.index import index_fingerprint, read_index
from components.stages.screen.nearest import Nearest

SCORER = {"options": {"model": "ViT-B-32", "weights": "openai"}, "content": {"model": "f"}}

OTHER = {"options": {"model": "RN50", "weights": "openai"}, "content": {"model": "g"}}


def vectors(count: int, seed: int, width: int = 8, dtype: Any = np.float16) -> NDArray[Any]:
    found: NDArray[Any] = np.random.default_rng(seed).normal(size=(count, width)).astype(dtype)
    return found


@given(st.integers(1, 50), st.integers(1, 20), st.integers(1, 60), st.integers(0, 1000))
def test_it_is_the_largest_of_all_cosines(count: int, images: int, rows: int, seed: int) -> None:
    index, queries = vectors(count, seed), vectors(images, seed + 1)
    a, b = (x.astype(np.float64) for x in (queries, index))
    cosines = (a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)
    before, nearest.ROWS = nearest.ROWS, rows  # blocks that don't fit the index change nothing
    try:
        found = Nearest(index, "x").cosines(queries)
    finally:
        nearest.ROWS = before
    np.testing.assert_allclose(found, cosines.max(axis=1), atol=1e-5)
    assert found.max() <= 1


def test_an_image_of_the_index_has_cosine_1() -> None:
    index = vectors(100, 0)
    found = Nearest(index, "x").cosines(np.concatenate([index[7:9], -index[7:8]]))
    np.testing.assert_allclose(found[:2], 1, atol=1e-6)
    assert found[2] < 0.999


def save_parquet(path: Path, rows: NDArray[Any] | list[Any], kind: str = "fixed") -> Path:
    if kind == "fixed":
        column = Field("embedding", "float16[D]", "").array(list(rows))
    else:
        column = pa.array([None if r is None else [float(x) for x in r] for r in rows], pa.list_(pa.float32()))
    pq.write_table(pa.table({"uid": [str(i) for i in range(len(rows))], "embedding": column}), path)
    return path


def test_every_kind_of_file_is_read(tmp_path: Path) -> None:
    rows = vectors(6, 0)
    np.save(tmp_path / "a.npy", rows)
    save_parquet(tmp_path / "b.parquet", [rows[0], None, *rows[1:]])
    save_parquet(tmp_path / "c.parquet", [*rows, None], "list")
    for name in ("a.npy", "b.parquet", "c.parquet"):
        np.testing.assert_array_equal(read_index(str(tmp_path / name), SCORER), rows)
    np.testing.assert_array_equal(read_index(str(tmp_path), SCORER), np.concatenate([rows] * 3))


def test_a_folder_with_an_empty_shard_is_read(tmp_path: Path) -> None:
    save_parquet(tmp_path / "a.parquet", [])
    save_parquet(tmp_path / "b.parquet", vectors(3, 0))
    assert len(read_index(str(tmp_path), SCORER)) == 3


def test_a_column_of_the_same_scorer_is_taken_and_of_another_one_refused(tmp_path: Path) -> None:
    save_parquet(tmp_path / "a.parquet", vectors(3, 0))
    (tmp_path / "column.json").write_text(json.dumps({"params": SCORER}))
    assert len(read_index(str(tmp_path), SCORER)) == 3
    (tmp_path / "column.json").write_text(json.dumps({"params": OTHER}))
    with pytest.raises(PermanentError, match="was made by RN50, weights openai, the recipe's scorer is ViT-B-32"):
        read_index(str(tmp_path), SCORER)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (np.zeros((2, 3, 4), np.float32), r"is float32 of shape \(2, 3, 4\), expected a matrix"),
        (np.zeros((2, 3), np.float64), "is float64 of shape"),
        (np.zeros((2, 3), np.float32), "an embedding is zero or not finite"),
        (np.full((2, 3), np.nan, np.float16), "an embedding is zero or not finite"),
        (np.zeros((0, 3), np.float16), "expected one length"),
        (np.array([{}], object), "can't be read as embeddings"),
    ],
)
def test_a_bad_matrix_is_refused(tmp_path: Path, rows: NDArray[Any], says: str) -> None:
    np.save(tmp_path / "x.npy", rows, allow_pickle=True)
    with pytest.raises(PermanentError, match=says):
        read_index(str(tmp_path / "x.npy"), SCORER)


def test_bad_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(b"<html>")
    (tmp_path / "x.parquet").write_bytes(b"<html>")
    pq.write_table(pa.table({"vector": [[1.0]]}), tmp_path / "y.parquet")
    pq.write_table(pa.table({"embedding": ["a"]}), tmp_path / "z.parquet")
    save_parquet(tmp_path / "w.parquet", [[1.0], [1.0, 2.0], [1.0, 2.0, 3.0]], "list")
    for name in ("x.npy", "x.parquet", "y.parquet"):
        with pytest.raises(PermanentError, match=f"{name}: can't be read as embeddings"):
            read_index(str(tmp_path / name), SCORER)
    with pytest.raises(PermanentError, match="embedding is string, expected lists"):
        read_index(str(tmp_path / "z.parquet"), SCORER)
    with pytest.raises(PermanentError, match="lists of different lengths"):
        read_index(str(tmp_path / "w.parquet"), SCORER)
    for missing in ("no.npy", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(PermanentError, match=r"there is no \.npy or \.parquet"):
            read_index(str(tmp_path / missing), SCORER)


def test_two_lengths_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", vectors(3, 0, 8))
    np.save(tmp_path / "b.npy", vectors(3, 0, 9))
    with pytest.raises(PermanentError, match=r"has embeddings of \[8, 9\] numbers"):
        read_index(str(tmp_path), SCORER)
    with pytest.raises(PermanentError, match="has embeddings of 8 numbers, the scorer's have 9"):
        Nearest(vectors(3, 0, 8), "x").cosines(vectors(3, 0, 9))


def test_another_content_is_another_index(tmp_path: Path) -> None:
    prints = set()
    for seed in (0, 1):
        np.save(tmp_path / "a.npy", vectors(3, seed))
        prints |= {index_fingerprint(str(tmp_path / "a.npy"), "w"), index_fingerprint(str(tmp_path / "a.npy"), "w")}
    assert len(prints) == 2
    with pytest.raises(PermanentError, match=r"spec\.columns\[0\]\.index: .*gone does not exist"):
        index_fingerprint(str(tmp_path / "gone"), "spec.columns[0].index")
