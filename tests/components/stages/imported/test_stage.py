"""Columns made elsewhere: every kind of file, and one clear line for every file that isn't what it should be."""

from __future__ import annotations

import gzip
import json
import logging
import random
import time
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.base.errors import PermanentError
from components.base.hashing import said
from components.engine.worker import run_task
from components.pool.columns import Columns
from components.pool.run import load_run
from components.pool.specs import ColumnSpec
from components.pool.uids import canonical_uid
from components.recipe import recipe
from components.stages.imported import sources
from components.stages.imported.stage import Import, ImportStage
from components.stages.index.stage import IndexStage
from components.storage.local import LocalStorage
from pipelines.planning.plan import plan_run
from tests.filled import planned
from tests.pipelines.execution.test_local import recipe_text
from tests.pools import indexed, open_pool, sample, uid, write_shard, write_tar


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards of four plain samples: uids 0 to 7."""
    for shard in range(2):
        write_shard(tmp_path / "shards", shard, 4)
    indexed(tmp_path / "shards", tmp_path / "out")
    return tmp_path / "shards"


def spec_of(source: Path | str, kind: str = "score", field: str | None = "value", by: str = "uid") -> ColumnSpec:
    options = Import.model_validate({"from": str(source), "field": field, "as": kind, "by": by})
    return ImportStage.make_spec(options, "spec.columns[0].import", {"index": IndexStage.make_index()})


def join(
    shards: Path, source: Path | str, kind: str = "score", field: str | None = "value", by: str = "uid"
) -> dict[str, list[Any]]:
    """The imported column of the pool: value and error by uid."""
    pool, columns = open_pool(shards), Columns(LocalStorage(shards.parent / "out"), "test")
    spec = spec_of(source, kind, field, by)
    run_task(ImportStage(spec), pool, pool.shards, columns)
    rows = [row for shard in pool.shards for row in columns.read(spec, shard).to_pylist()]
    assert all(row[other] is None for row in rows for other in {"score", "text", "flag"} - {kind})
    return {"uid": [r["uid"] for r in rows], "value": [r[kind] for r in rows], "error": [r["error"] for r in rows]}


def parquet(path: Path, uids: list[Any], values: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"other": uids, "uid": uids, "value": values}), path)
    return path


def subset(path: Path, uids: list[str], dtype: str = "u8,u8") -> Path:
    """As DataComp writes its subsets: two halves of each uid, sorted."""
    np.save(path, np.array([(int(u[:16], 16), int(u[16:], 16)) for u in sorted(uids)], np.dtype(dtype)))
    return path


def test_a_parquet(tmp_path: Path, shards: Path) -> None:
    values = pa.array([0.5, None, 0.25, 7.0], pa.float64())
    found = join(shards, parquet(tmp_path / "a.parquet", [uid(1), uid(2), uid(6), uid(99)], values))
    assert found["uid"] == [uid(i) for i in range(8)]
    assert found["value"] == [None, 0.5, None, None, None, None, 0.25, None]
    not_there = "not in the source"
    assert found["error"] == [not_there, None, None, not_there, not_there, not_there, None, not_there]


def test_a_folder_of_parquets_and_csvs(tmp_path: Path, shards: Path) -> None:
    parquet(tmp_path / "made" / "a.parquet", [uid(0)], [1.0])
    parquet(tmp_path / "made" / "deep" / "b.parquet", [uid(5)], [2.0])
    (tmp_path / "made" / "c.csv").write_text(f"value,uid\n3,{uid(7)}\n")
    (tmp_path / "made" / "_SUCCESS").touch()
    assert join(shards, tmp_path / "made")["value"] == [1, None, None, None, None, 2, None, 3]


@pytest.mark.parametrize("name", ["parquet", "all-csv", "made.parquet"])
def test_a_folder_may_be_called_like_a_kind_of_file(tmp_path: Path, shards: Path, name: str) -> None:
    parquet(tmp_path / "x" / name / "a.parquet", [uid(0)], [1.0])
    parquet(tmp_path / "x" / f"{name}-older" / "a.parquet", [uid(1)], [1.0])
    assert join(shards, tmp_path / "x" / name)["value"] == [1.0] + [None] * 7


def test_a_csv_of_captions(tmp_path: Path, shards: Path) -> None:
    path = tmp_path / "captions.csv"
    path.write_text(
        "\ufeffuid,value,size\n"
        f'{uid(0)},"a dog, a cat",1\n{uid(1)},123,2\n{uid(2)},"two\nlines",x\n{uid(3)},,4\n{uid(4)},  ,5\n'
        f'{uid(5)},"he said ""hi""",6\n{uid(6)},true,7\n{uid(7)},null,8\n',
        encoding="utf-8",
    )
    found = join(shards, path, "text")
    assert found["value"] == ["a dog, a cat", "123", "two\nlines", None, None, 'he said "hi"', "true", "null"]
    assert found["error"] == [None] * 8


def test_a_csv_of_scores_and_flags(tmp_path: Path, shards: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text(f"uid,value,flag\n{uid(0)},1,true\n{uid(1)},0.5,0\n{uid(2)},,1\n{uid(3)},nan,\n")
    assert join(shards, path)["value"][:3] == [1, 0.5, None]
    assert join(shards, path, "flag", "flag")["value"][:4] == [True, False, True, None]


def test_a_subset_of_datacomp(tmp_path: Path, shards: Path) -> None:
    found = join(shards, subset(tmp_path / "subset.npy", [uid(2), uid(7), "f" * 32]), "flag", None)
    assert found["value"] == [False, False, True, False, False, False, False, True]
    assert found["error"] == [None] * 8


def test_an_empty_subset(tmp_path: Path, shards: Path) -> None:
    assert join(shards, subset(tmp_path / "none.npy", []), "flag", None)["value"] == [False] * 8


def test_several_batches(tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "ROWS", 3)
    uids = [uid(i) for i in range(20, 0, -1)]
    source = parquet(tmp_path / "a.parquet", uids, [float(i) for i in range(20, 0, -1)])
    assert join(shards, source)["value"] == [None, 1, 2, 3, 4, 5, 6, 7]
    flags = join(shards, subset(tmp_path / "a.npy", [uid(i) for i in range(1, 20)]), "flag", None)
    assert flags["value"] == [False] + [True] * 7


def test_the_first_of_a_repeated_uid_counts(tmp_path: Path, shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = parquet(tmp_path / "a.parquet", [uid(0), uid(0), uid(1), uid(0)], [1.0, 2.0, 3.0, 4.0])
    assert join(shards, source)["value"][:2] == [1, 3]
    assert "2 rows repeat a uid; the first one counts" in caplog.text


def test_a_source_of_another_pool_is_suspected(tmp_path: Path, shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        found = join(shards, parquet(tmp_path / "a.parquet", [uid(900), None], [1.0, 2.0]))
    assert found["error"] == ["not in the source"] * 8
    assert "2 rows, 0 of this task's 8 samples found" in caplog.text
    assert "is it of another pool?" in caplog.text


def test_uids_of_another_form_meet_the_index(tmp_path: Path) -> None:
    """A pool whose json has a uid of its own form, and upper case."""
    samples = {str(i): sample(i, json=f'{{"uid": "{u}"}}'.encode()) for i, u in enumerate(["img-1", "AB" * 16, "17"])}
    write_tar(tmp_path / "shards" / "00000000.tar", samples)
    indexed(tmp_path / "shards", tmp_path / "out")
    assert join(tmp_path / "shards", parquet(tmp_path / "a.parquet", ["17", "img-1", "ab" * 16], [1.0, 2.0, 3.0])) == {
        "uid": [canonical_uid("img-1"), "ab" * 16, canonical_uid("17")], "value": [2, 3, 1], "error": [None] * 3,
    }  # fmt: skip
    assert join(tmp_path / "shards", parquet(tmp_path / "b.parquet", [17, 18], [1.0, 2.0]))["value"] == [None, None, 1]
    both = pa.array(["AB" * 16, "img-1"]).dictionary_encode()
    assert join(tmp_path / "shards", parquet(tmp_path / "c.parquet", both, [1.0, 2.0]))["value"] == [2, 1, None]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([1.5], pa.float32()), 1.5),
        (pa.array(np.array([0.5], np.float16)), 0.5),
        (pa.array([2**24 + 1], pa.int64()), float(2**24)),  # the nearest float32
        (pa.array([1e300]), float("inf")),
    ],
)
def test_scores_of_any_number(tmp_path: Path, shards: Path, values: pa.Array, expected: float) -> None:
    assert join(shards, parquet(tmp_path / "a.parquet", [uid(0)], values))["value"][0] == expected


WRONG = [
    ("score", pa.array(["high"]), "found 'high', expected a score; is it the right field?"),
    ("score", pa.array([True]), "found True, expected a score"),
    ("text", pa.array([0.5]), "found 0.5, expected a text"),
    ("flag", pa.array([0.5]), "found 0.5, expected a flag"),
    ("text", pa.array([[1, 2]]), r"field value has dtype list<\w+: int64>, expected one value a row"),
]


@pytest.mark.parametrize(("kind", "values", "message"), WRONG)
def test_values_of_another_kind(tmp_path: Path, shards: Path, kind: str, values: pa.Array, message: str) -> None:
    with pytest.raises(PermanentError, match=rf"^import .*a\.parquet: {message}"):
        join(shards, parquet(tmp_path / "a.parquet", [uid(0)], values), kind)


def one_line(shards: Path, source: Path, message: str, kind: str = "score", field: str | None = "value") -> None:
    with pytest.raises(PermanentError, match=message) as caught:
        join(shards, source, kind, field)
    assert "\n" not in str(caught.value)


def test_fields_that_are_not_there(tmp_path: Path, shards: Path) -> None:
    source = parquet(tmp_path / "a.parquet", [uid(0)], [1.0])
    one_line(shards, source, r"a\.parquet: no field clip; there is other, uid, value", field="clip")
    pq.write_table(pa.table({"id": ["a"], "v": [1]}), tmp_path / "b.parquet")
    one_line(shards, tmp_path / "b.parquet", r"b\.parquet: no field uid or value; there is id, v")
    (tmp_path / "c.csv").write_text("uid,score\n")
    one_line(shards, tmp_path / "c.csv", r"c\.csv: no field value; there is uid, score")
    (tmp_path / "d.csv").write_text("")
    one_line(shards, tmp_path / "d.csv", r"d\.csv: no field uid or value; there is nothing")


def test_a_wrong_field_is_found_when_a_run_is_planned(tmp_path: Path) -> None:
    """Not after a download of days."""
    source = parquet(tmp_path / "a.parquet", [uid(0)], [1.0])
    (tmp_path / "t.csv").write_text("url,text\nhttp://example.com/1.jpg,one\n")
    columns = [{"name": "l14", "import": {"from": str(source), "field": "clip", "as": "score"}}]
    pool = {"name": "web", "urls": str(tmp_path / "t.csv")}
    mixtures = [{"name": "raw", "rules": [{"text": "raw"}]}]
    text = recipe_text(tmp_path / "out", tmp_path, mixtures, columns=columns, pool=pool)
    with pytest.raises(PermanentError, match=r"a\.parquet: no field clip; there is other, uid, value"):
        plan_run(recipe.parse_recipe(text))


def unchecked(*values: bytes) -> pa.Array:
    """Texts that need not be UTF-8: nobody checks what is written into a parquet."""
    array = pa.array(values, pa.binary())
    return pa.StringArray.from_buffers(len(array), *array.buffers()[1:], array.buffers()[0])


TWO = [uid(0), uid(7)]
UIDS = {
    "bytes": pa.array([u.encode() for u in TWO]),
    "16 bytes": pa.array([bytes.fromhex(u) for u in TWO], pa.binary(16)),
    "UUIDs": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([bytes.fromhex(u) for u in TWO], pa.binary(16))),
    "views": pa.array(TWO, pa.string_view()),
    "large": pa.array(TWO, pa.large_string()),
    "dictionary": pa.array(TWO).dictionary_encode(),
    "dashed": pa.array([str(UUID(u)) for u in TWO]),
    "braces": pa.array([f"{{{UUID(u)}}}".upper() for u in TWO]),
}


@pytest.mark.parametrize("uids", UIDS.values(), ids=UIDS)
def test_uids_of_any_type(tmp_path: Path, shards: Path, uids: pa.Array) -> None:
    source = parquet(tmp_path / "a.parquet", uids, [1.0, 2.0])  # type: ignore[arg-type]
    assert join(shards, source)["value"] == [1.0, *[None] * 6, 2.0]


def test_uids_of_no_type_for_it(tmp_path: Path, shards: Path) -> None:
    source = parquet(tmp_path / "a.parquet", [0.5], [1.0])
    one_line(shards, source, r"a\.parquet: uid has dtype double, expected text, a whole number or bytes")


VALUES = [
    ("text", pa.array(["a cat", None], pa.string_view()), "a cat"),
    ("text", pa.array(["a cat", None], pa.large_string()), "a cat"),
    ("text", pa.array([b"a cat", None], pa.binary()), "a cat"),
    ("text", pa.array(["a cat", None]).dictionary_encode(), "a cat"),
    ("score", pa.array([Decimal("0.25"), None], pa.decimal128(5, 2)), 0.25),
    ("score", pa.array([0.25, None]).dictionary_encode(), 0.25),
    ("flag", pa.array([True, None]).dictionary_encode(), True),
]


@pytest.mark.parametrize(("kind", "values", "expected"), VALUES, ids=lambda value: str(getattr(value, "type", "")))
def test_values_of_any_type(tmp_path: Path, shards: Path, kind: str, values: pa.Array, expected: Any) -> None:
    source = parquet(tmp_path / "a.parquet", TWO, values)
    assert join(shards, source, kind)["value"] == [expected, *[None] * 7]


@pytest.mark.parametrize("name", ["a.csv.gz", "a.tsv", "A.PARQUET", "a.parq"])
def test_names_of_tables(tmp_path: Path, shards: Path, name: str) -> None:
    path = parquet(tmp_path / "made" / name, TWO, [1.0, 2.0])
    if "." + name.partition(".")[2].lower() not in (".parquet", ".parq"):
        separator = "\t" if "tsv" in name else ","
        data = "".join(f"{separator.join(row)}\n" for row in (("uid", "value"), (uid(0), "1"), (uid(7), "2"))).encode()
        path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert join(shards, path)["value"] == join(shards, path.parent)["value"] == [1.0, *[None] * 6, 2.0]


def test_what_looks_like_a_table_is_counted(tmp_path: Path, shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    parquet(tmp_path / "made" / "a.parquet", [uid(0)], [1.0])
    for name in ("b.csv.zst", "c.jsonl", "d.parquet.gz", "e.npz", "_SUCCESS", "f_stats.json", ".g.jsonl"):
        (tmp_path / "made" / name).write_bytes(b"x")
    assert join(shards, tmp_path / "made")["value"][0] == 1.0
    assert "3 files look like tables and are not read: .csv.zst 1, .jsonl 1, .parquet.gz 1; the first is" in caplog.text
    (tmp_path / "made" / "a.parquet").unlink()
    one_line(shards, tmp_path / "made", r"no \.parquet, \.csv or \.npy there; 3 files look like tables")


def test_imported_texts_are_cleaned_as_raw_texts_are(tmp_path: Path, shards: Path) -> None:
    values = ["\ufeffa\0 cat ", "x" * 8193, "é" * 4097, " \0\ufeff ", "", None, "two\nlines", "x" * 8192]
    found = join(shards, parquet(tmp_path / "a.parquet", [uid(i) for i in range(8)], values), "text")
    assert found["value"] == ["a cat", None, None, None, None, None, "two\nlines", "x" * 8192]
    over = "text over 8192 bytes"
    assert found["error"] == [None, over, over, None, None, None, None, None]


TEXTS = unchecked(b"fine", b"caf\xe9")
LIKE_TEXTS = {
    "string": TEXTS,
    "dictionary": pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int8()), TEXTS),
    "bytes": TEXTS.cast(pa.binary()),
    "views": TEXTS.cast(pa.binary()).cast(pa.binary_view()),
}


@pytest.mark.parametrize("texts", LIKE_TEXTS.values(), ids=LIKE_TEXTS)
def test_a_text_that_is_no_utf_8_costs_its_sample(tmp_path: Path, shards: Path, texts: pa.Array) -> None:
    found = join(shards, parquet(tmp_path / "a.parquet", [uid(0), uid(1)], texts), "text")
    assert (found["value"][:2], found["error"][:2]) == (["fine", None], [None, "text not UTF-8"])


@pytest.mark.parametrize("by", ["uid", "key"])
def test_a_csv_with_bytes_that_are_no_utf_8(tmp_path: Path, shards: Path, by: str) -> None:
    """One in a text costs its sample, one in a name meets no sample, one in another field costs nothing."""
    names = [uid(i) if by == "uid" else f"00000000{i:04d}" for i in range(3)]
    rows = [b"a\xff,fine,", b",caf\xe9,", b",lost,\xff"]
    data = b"".join(row + name.encode() + b"\n" for row, name in zip(rows, names, strict=True))
    (tmp_path / "a.csv").write_bytes(b"other,value," + by.encode() + b"\n" + data)
    found = join(shards, tmp_path / "a.csv", "text", by=by)
    assert found["value"] == ["fine"] + [None] * 7
    assert found["error"] == [None, "text not UTF-8", *["not in the source"] * 6]


def test_uids_that_are_no_utf_8(tmp_path: Path, shards: Path) -> None:
    uids = parquet(tmp_path / "b.parquet", unchecked(uid(0).encode(), b"\xff"), [1.0, 2.0])  # type: ignore[arg-type]
    assert join(shards, uids)["value"] == [1.0, *[None] * 7]


def test_two_fields_of_one_name(tmp_path: Path, shards: Path) -> None:
    pq.write_table(pa.table([TWO, TWO, [1.0, 2.0]], ["uid", "uid", "value"]), tmp_path / "a.parquet")
    one_line(shards, tmp_path / "a.parquet", r"^import a\.parquet: 2 fields are called uid; rename all but one")


def test_a_stray_quote_in_a_csv(tmp_path: Path, shards: Path) -> None:
    rows = [f"{uid(n)},{chr(34) if n == 5 else ''}text {n}" for n in range(8)]
    (tmp_path / "a.csv").write_text("\n".join(["uid,value", *rows, ""]))
    one_line(shards, tmp_path / "a.csv", r"^import a\.csv: row 6 \(line 7\): a value opens with a quote", "text")


PICTURES = [{"url": f"https://a.example/{n // 2}.jpg", "sha256": f"{n:064x}"} for n in range(4)]


def named_pool(tmp_path: Path, beside: str) -> Path:
    """One shard of four samples, two with one URL each; the parquet beside it has all fields, none, or isn't there."""
    metas = [json.dumps({"uid": uid(n), **more}).encode() for n, more in enumerate(PICTURES)]
    path = tmp_path / "shards" / "00000000.tar"
    write_tar(path, {f"{n:09d}": sample(n, json=meta) for n, meta in enumerate(metas)})
    rows = {"key": [f"{n:09d}" for n in range(4)], "status": ["success"] * 4}
    if beside == "full":
        rows |= {name: [picture[name] for picture in PICTURES] for name in ("url", "sha256")}
    if beside != "none":
        pq.write_table(pa.table(rows), path.with_suffix(".parquet"))
    indexed(tmp_path / "shards", tmp_path / "out")
    return tmp_path / "shards"


BY = [
    ("key", pa.array(["000000001", "000000003", "000000001"]), [None, "a", None, "b"]),
    ("url", pa.array([PICTURES[2]["url"], "https://b.example/", "x"]), [None, None, "a", "a"]),
    ("sha256", pa.array([f"{n:064X}" for n in (3, 0, 3)], pa.large_string()), ["b", None, None, "a"]),
    ("sha256", pa.array([n.to_bytes(32, "big") for n in (3, 0, 3)], pa.binary(32)), ["b", None, None, "a"]),
]


@pytest.mark.parametrize("beside", ["none", "keys", "full"])
@pytest.mark.parametrize(("by", "names", "expected"), BY, ids=["key", "url", "sha256", "bytes"])
def test_joins_by_other_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, by: str, names: pa.Array, expected: list[str | None], beside: str
) -> None:
    shards = named_pool(tmp_path, beside)
    pq.write_table(pa.table({by.upper(): names, "value": ["a", "b", "c"]}), tmp_path / "a.parquet")
    found = join(shards, tmp_path / "a.parquet", "text", by=by)
    assert found["value"] == expected
    assert found["error"] == [None if value else "not in the source" for value in expected]
    assert (f"1 rows repeat a {by}; the first one counts" in caplog.text) == (by != "url")


def test_samples_without_the_name_that_is_joined_by(tmp_path: Path) -> None:
    write_tar(tmp_path / "shards" / "00000000.tar", {"a": sample(0), "b": sample(1, json=b'{"url": 7}')})
    indexed(tmp_path / "shards", tmp_path / "out")
    pq.write_table(pa.table({"url": ["7"], "value": [1.0]}), tmp_path / "a.parquet")
    found = join(tmp_path / "shards", tmp_path / "a.parquet", by="url")
    assert found["error"] == ["no url in the pool"] * 2


def test_equal_uids_of_two_shards_are_told_apart_by_key(tmp_path: Path) -> None:
    for shard in range(2):
        write_tar(tmp_path / "shards" / f"{shard}.tar", {f"{shard}": sample(0)})
    indexed(tmp_path / "shards", tmp_path / "out")
    pq.write_table(pa.table({"key": ["1", "0"], "value": [1.0, 0.5]}), tmp_path / "a.parquet")
    assert join(tmp_path / "shards", tmp_path / "a.parquet", by="key")["value"] == [0.5, 1.0]


def test_a_join_by_uid_keeps_its_name() -> None:
    options = {"from": "a.parquet", "field": "v", "as": "score"}
    assert said(Import.model_validate(options)) == said(Import.model_validate({**options, "by": "uid"})) == options
    with pytest.raises(ValueError, match="it can be joined by uid only"):
        Import.model_validate({"from": "a.npy", "as": "flag", "by": "url"})


def test_files_that_are_something_else(tmp_path: Path, shards: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"<html>")
    one_line(shards, tmp_path / "a.parquet", r"^import a\.parquet: Parquet")
    whole = parquet(tmp_path / "b.parquet", [uid(i) for i in range(8)], [float(i) for i in range(8)]).read_bytes()
    (tmp_path / "b.parquet").write_bytes(whole[:4] + bytes(len(whole) // 2) + whole[4 + len(whole) // 2 :])
    one_line(shards, tmp_path / "b.parquet", r"^import b\.parquet: ")
    (tmp_path / "c.csv").write_text(f"uid,value\n{uid(0)},high\n")
    one_line(shards, tmp_path / "c.csv", r"^import c\.csv: .*invalid value 'high'")
    (tmp_path / "e.csv").write_text(f"uid,value\n{uid(0)},1,2\n")
    one_line(shards, tmp_path / "e.csv", r"^import e\.csv: .*Expected 2 columns, got 3")


def test_subsets_that_are_something_else(tmp_path: Path, shards: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3))
    one_line(shards, tmp_path / "a.npy", r"a\.npy: has dtype float64, expected DataComp's u8,u8", "flag", None)
    np.save(tmp_path / "b.npy", np.zeros((3, 2), "u8,u8"))
    one_line(shards, tmp_path / "b.npy", r"b\.npy: has shape \(3, 2\), expected one uid a row", "flag", None)
    (tmp_path / "c.npy").write_bytes(b"<html>")
    one_line(shards, tmp_path / "c.npy", r"^import c\.npy: ", "flag", None)
    np.save(tmp_path / "d.npy", np.array([uid(0)], object), allow_pickle=True)
    one_line(shards, tmp_path / "d.npy", r"d\.npy: has dtype object, expected", "flag", None)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"(5,)", b"(4,)"),
        (b"(5,)", b"(-5,"),
        (b"'f0'", b"'f\0'"),
        (b"}", b"{"),
        (b"fortran", b"fortraN"),
        (b"(5,)", b"(9**"),
    ],
)
def test_a_subset_whose_header_is_altered(tmp_path: Path, shards: Path, old: bytes, new: bytes) -> None:
    path = subset(tmp_path / "a.npy", [uid(i) for i in range(5)])
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    one_line(shards, path, r"^import a\.npy: ", "flag", None)


def mutated(path: Path, seed: int) -> None:
    """Write a file of the kind that its name says, a few bytes of which are others."""
    draw, uids = random.Random(seed), [uid(i) for i in range(5)]
    if path.suffix == ".npy":
        subset(path, uids)
    elif path.suffix == ".parquet":
        parquet(path, uids, [f"text {i}" for i in range(5)])
    else:
        path.write_text("".join(f'{u},"text {i}"\n' for i, u in enumerate(["uid", *uids])).replace("text 0", "value"))
    data = bytearray(path.read_bytes())
    for _ in range(draw.randint(1, 4)):
        data[draw.randrange(130 if path.suffix == ".npy" else len(data))] = draw.randrange(256)
    path.write_bytes(data)


@pytest.mark.parametrize("end", ["npy", "parquet", "csv"])
def test_a_mutated_file_is_read_or_one_line(tmp_path: Path, end: str) -> None:
    """Whatever bytes differ: nothing but a PermanentError of one line leaves the reader."""
    for seed in range(200):
        path = tmp_path / f"{seed}.{end}"
        mutated(path, seed)
        field, kind = (None, "flag") if end == "npy" else ("value", "text")
        message = ""
        try:
            list(sources.rows_of(LocalStorage(tmp_path), path.name, field, kind, "uid", set(TWO)))
        except PermanentError as error:
            message = str(error)
        assert message.isprintable(), seed


@pytest.mark.parametrize("lost", [1, 16, 40])
def test_a_subset_that_was_cut_short(tmp_path: Path, shards: Path, lost: int) -> None:
    path = subset(tmp_path / "a.npy", [uid(i) for i in range(5)])
    path.write_bytes(path.read_bytes()[:-lost])
    one_line(shards, path, r"a\.npy: is cut short: \d of 5 uids are there; fetch it again", "flag", None)


@pytest.mark.parametrize("name", ["absent.parquet", "absent", "empty"])
def test_a_source_that_is_not_there_is_said_by_the_plan(tmp_path: Path, shards: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    columns = [{"name": "x", "import": {"from": str(tmp_path / name), "field": "value", "as": "score"}}]
    text = recipe_text(tmp_path / "new", shards, [{"name": "raw", "rules": [{"text": "raw"}]}], columns=columns)
    with pytest.raises(PermanentError, match=rf"^import .*/{name}: no \.parquet, \.csv or \.npy there"):
        plan_run(recipe.parse_recipe(text))


def test_a_relative_source_is_found_from_anywhere(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet(tmp_path / "made" / "a.parquet", [uid(0)], [1.0])
    monkeypatch.chdir(tmp_path)
    columns = [{"name": "x", "import": {"from": "made/a.parquet", "field": "value", "as": "score"}}]
    rule = {"text": "raw", "where": [{"score": "x", "atLeast": 0}]}
    run = planned(tmp_path / "new", shards, [{"name": "good", "rules": [rule]}], columns=columns)
    monkeypatch.chdir("/")
    loaded = load_run(f"{run.storage.uri}/{run.folder}")
    stage = ImportStage(loaded.nodes["import:x"].spec)
    stage.setup(lambda: [uid(0)])
    assert stage.values == {uid(0): 1.0}


def test_a_changed_source_is_another_column(tmp_path: Path, shards: Path) -> None:
    def spec() -> str:
        return spec_of(tmp_path / "a.parquet").hash

    parquet(tmp_path / "a.parquet", [uid(0)], [1.0])
    parquet(tmp_path / "a.parquet.old.parquet", [uid(0)], [1.0])
    before = spec()
    parquet(tmp_path / "a.parquet.old.parquet", [uid(0)] * 9, [1.0] * 9)
    assert spec() == before
    parquet(tmp_path / "a.parquet", [uid(0)] * 9, [1.0] * 9)
    assert spec() != before


def test_a_source_much_larger_than_the_task_is_streamed_fast(tmp_path: Path, shards: Path) -> None:
    """A million rows for eight samples: every task reads the whole source, so a row must cost next to nothing."""
    uids = [uid(i) for i in range(500_000)]
    parquet(tmp_path / "a.parquet", uids, np.zeros(len(uids)))
    subset(tmp_path / "a.npy", uids)
    began = time.process_time()
    assert join(shards, tmp_path / "a.parquet")["value"] == [0.0] * 8
    assert join(shards, tmp_path / "a.npy", "flag", None)["value"] == [True] * 8
    assert time.process_time() - began < 1.5


def test_a_field_may_have_any_name(tmp_path: Path, shards: Path) -> None:
    pq.write_table(pa.table({"uid": [uid(0)], "CLIP L/14 (../%)": [0.5]}), tmp_path / "a.parquet")
    assert join(shards, tmp_path / "a.parquet", field="CLIP L/14 (../%)")["value"][0] == 0.5
    folders = [p.name for p in (tmp_path / "out" / "pools" / "test" / "columns").iterdir()]
    assert [f for f in folders if f.startswith("import.CLIP-L-14-..-")]
