"""Pools that are others, or became others: none gets the results of one that it was taken for."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from components.base.errors import PermanentError
from components.pool.columns import ALL, Columns
from components.pool.run import Run
from components.pool.shards import list_pool
from components.pool.specs import Content
from components.recipe.recipe import parse_recipe
from components.stages.index.stage import IndexStage
from components.storage.interface import Storage
from components.storage.local import LocalStorage
from components.storage.opening import open_storage
from pipelines.execution.local import run_all
from pipelines.planning.estimate import show_plan
from pipelines.planning.plan import plan_run
from tests.components.storage.gcs_server import BUCKET, gcs_server
from tests.components.storage.s3_server import s3_environment, s3_server
from tests.pipelines.execution.test_local import BLIP, GOOD, REST, recipe_text, run
from tests.pipelines.test_pools import RAW, files, written
from tests.pools import indexed, jpeg, sample, uid, write_tar

MIXED = {"name": "mixed", "rules": [GOOD, REST]}
COUNT = 6  # samples of a shard


def picture(number: int) -> bytes:
    """A JPEG whose number is in its pixels and not in its size: decoders leave out what follows the image."""
    return jpeg(number).ljust(1 << 11, b"\0")


def write(folder: Path, text: str, image: Callable[[int], bytes] = picture, count: int = 2) -> Path:
    """Shards whose names and sizes are the same for every text of one length and all images."""
    for shard in range(count):
        numbers = range(shard * COUNT, (shard + 1) * COUNT)
        samples = {f"{n:04d}": sample(n, f"{text} number {n:02d}", jpg=image(n)) for n in numbers}
        write_tar(folder / f"{shard:08d}.tar", samples)
    return folder


def texts(done: Run, mixture: str = "raw") -> set[str]:
    """The first words of a training set's texts."""
    return {text.partition(" ")[0] for text in written(done, mixture).values()}


def recipe(storage: Path, shards: Path, *, name: str = "pool", mixtures: Sequence[Any] = (RAW,), **spec: Any) -> str:
    where = {"name": name, "shards": str(shards)}
    captioners = {} if len(mixtures) > 1 else {"columns": []}
    return recipe_text(storage, shards, [*mixtures], pool=where, **captioners, **spec)


@pytest.mark.parametrize("other", [{"name": "second"}, {"name": "pool"}])
def test_two_pools_of_one_storage_have_their_own_texts(tmp_path: Path, other: dict[str, str]) -> None:
    """Shards of the same names and sizes: under another pool's name, or elsewhere under the same one."""
    for word in ("first", "other"):
        write(tmp_path / word, word)
    times = [path.stat().st_mtime_ns for path in sorted((tmp_path / "first").iterdir())]
    for path, time in zip(sorted((tmp_path / "other").iterdir()), times, strict=True):
        os.utime(path, ns=(time, time))
    first = run(recipe(tmp_path / "out", tmp_path / "first"))
    second = run(recipe(tmp_path / "out", tmp_path / "other", **other))
    assert texts(first) == {"first"}
    assert texts(second) == {"other"}
    assert first.mixture_folder(first.spec.mixtures[0]) != second.mixture_folder(second.spec.mixtures[0])
    for done, word in ((first, "first"), (second, "other")):
        index = done.columns.read(done.index, done.pool.shards[0]).column("text").to_pylist()
        assert index == [f"{word} number {n:02d}" for n in range(COUNT)]
        page = done.storage.read(f"{done.folder}/report.html").decode()
        assert f"{word} number" in page
        assert f"{'other' if word == 'first' else 'first'} number" not in page


@pytest.mark.slow
def test_texts_corrected_in_place_are_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What was made of the images alone is kept: embeddings, and the captions of whoever has one already."""
    caplog.set_level("INFO")
    text = recipe(tmp_path / "out", write(tmp_path / "shards", "wrong"), mixtures=(RAW, MIXED))
    first, before = run(text), files(tmp_path / "out", "")
    write(tmp_path / "shards", "right")
    assert texts(first) == {"wrong"}
    second, after = run(text), files(tmp_path / "out", "")
    assert texts(second) == {"right"}
    assert "index: 2 of 2 shards were written, moved or touched since they were indexed" in caplog.text
    kept = {path: file for path, file in before.items() if not path.startswith("runs/")}
    new = {path for path in after.keys() - kept.keys() if path.startswith("pools/pool/columns/")}
    assert kept.items() <= after.items()
    assert {Path(path).parent.name.partition(".")[0] for path in new} == {"index", "score", "caption"}
    for shard in second.pool.shards:
        uids = second.columns.read(second.text("blip"), shard, []).column("uid").to_pylist()
        assert len(uids) == len(set(uids))
        old = first.columns.read(first.text("blip"), first.pool.shards[int(shard.name)])
        assert old.to_pylist() == second.columns.read(second.text("blip"), shard).to_pylist()[: old.num_rows]


@pytest.mark.parametrize("shards", [("00000000",), ("00000000", "00000001")])
def test_a_plan_says_that_shards_are_to_be_indexed_anew(tmp_path: Path, shards: tuple[str, ...]) -> None:
    text = recipe(tmp_path / "out", write(tmp_path / "shards", "photo"))
    run(text)
    for shard in shards:
        os.utime(tmp_path / "shards" / f"{shard}.tar", ns=(1, 1))
    show_plan(plan_run(parse_recipe(text)), console := Console(record=True, width=200))
    page = console.export_text()
    assert f"{len(shards)} of its shards are not as they were indexed; what of their columns" in page
    assert re.search(rf"index +12 +{6 * len(shards)} +{2 - len(shards)} of 2", page)
    run(text)
    show_plan(plan_run(parse_recipe(text)), console := Console(record=True, width=200))
    assert "as they were indexed" not in console.export_text()


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_texts_corrected_in_place_in_a_bucket_are_noticed(
    tmp_path: Path, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bucket(scheme, monkeypatch) as there:
        text = recipe(f"{there}/out", f"{there}/shards")  # type: ignore[arg-type]
        for word in ("wrong", "right"):
            fill(open_storage(f"{there}/shards"), write(tmp_path, word))
            done = run(text)
            index = done.columns.read(done.index, done.pool.shards[1]).column("text").to_pylist()
            assert index == [f"{word} number {n:02d}" for n in range(COUNT, 2 * COUNT)]
            assert mixture_texts(done) == {word}


def mixture_texts(done: Run) -> set[str]:
    folder = done.dataset_folder(done.spec.mixtures[0])
    data = b"".join(done.storage.read(e.path) for e in done.storage.list(f"{folder}/") if e.path.endswith(".tar"))
    return {word for word in ("wrong", "right") if f"{word} number".encode() in data}


@contextmanager
def bucket(scheme: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an empty bucket."""
    with gcs_server() if scheme == "gs" else s3_server() as address, s3_environment(address):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        yield f"{scheme}://{BUCKET}"


def fill(storage: Storage, folder: Path) -> None:
    for path in sorted(folder.glob("*.tar")):
        storage.write(path.name, path.read_bytes())


def test_images_replaced_in_place_are_noticed(tmp_path: Path) -> None:
    """Texts, sizes and places are those of before: only the bytes tell."""
    text = recipe(tmp_path / "out", write(tmp_path / "shards", "photo"))
    first = run(text)
    sizes = {path: path.stat().st_size for path in (tmp_path / "shards").iterdir()}
    write(tmp_path / "shards", "photo", lambda number: picture(number + 100))
    assert sizes == {path: path.stat().st_size for path in (tmp_path / "shards").iterdir()}
    second = run(text)
    assert written(first, "raw").keys() == {picture(n) for n in range(2 * COUNT)}
    assert written(second, "raw").keys() == {picture(n + 100) for n in range(2 * COUNT)}
    old, new = (done.columns.read(done.nodes["embed"].spec, done.pool.shards[0]) for done in (first, second))
    assert old.column("uid") == new.column("uid")
    assert old.column("embedding") != new.column("embedding")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["touched", "copied", "again"])
def test_a_pool_with_the_same_bytes_computes_nothing_twice(tmp_path: Path, how: str) -> None:
    """However it comes to other times or to another place: its shards are indexed, and that is all."""
    shards, out = write(tmp_path / "shards", "photo"), tmp_path / "out"
    run(recipe(out, shards, mixtures=(RAW, MIXED)))
    before = files(out, "")
    if how == "touched":
        for path in shards.iterdir():
            os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))
    elif how == "copied":
        shards = Path(shutil.copytree(shards, tmp_path / "elsewhere"))
    run(recipe(out, shards, mixtures=(RAW, MIXED)))
    records = ("runs/", "rates/")
    kept = {path: file for path, file in before.items() if not path.startswith(records)}
    after = {path: file for path, file in files(out, "").items() if not path.startswith(records)}
    assert kept.items() <= after.items()
    new = {"/".join(path.split("/")[2:4]).partition(".")[0] for path in after.keys() - kept.keys()}
    assert {name.partition("/")[0] for name in new} == (
        set() if how == "again" else {"manifests", "contents", "columns"}
    )
    assert {name for name in new if name.startswith("columns")} <= {"columns/index"}
    if how == "again":
        assert len(list((out / "runs").iterdir())) == 1


def test_a_shard_replaced_after_the_plan_is_not_read_for_the_planned_one(tmp_path: Path) -> None:
    planned = plan_run(parse_recipe(recipe(tmp_path / "out", write(tmp_path / "shards", "wrong"))))
    planned.save()
    write(tmp_path / "shards", "right")
    with pytest.raises(
        PermanentError, match=r"00000000\.tar: it was replaced after this run was planned .*run the rec"
    ):
        run_all(planned)
    assert texts(run(recipe(tmp_path / "out", tmp_path / "shards"))) == {"right"}


@pytest.mark.parametrize("scheme", ["gs", "s3", "file"])
def test_an_object_is_opened_in_the_version_that_was_listed(
    tmp_path: Path, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bucket(scheme, monkeypatch) if scheme != "file" else contextmanager(lambda: iter([str(tmp_path)]))() as there:
        storage = open_storage(there)
        storage.write("a", b"before")
        [entry] = storage.list()
        with storage.open("a", entry.version) as file:
            assert file.read() == b"before"
        storage.write("a", b"after!")
        [other] = storage.list()
        assert other.version != entry.version
        assert other.size == entry.size
        with pytest.raises(PermanentError, match=f"version {entry.version}, now {other.version}") as refused:
            storage.open("a", entry.version)
        assert "\n" not in str(refused.value)
        with storage.open("a", other.version) as file, storage.open("a") as any_version:
            assert file.read() == any_version.read() == b"after!"


def meta(number: int, **other: Any) -> bytes:
    return json.dumps({"uid": uid(number), "caption": "photo number 2", "width": 40, "height": 30, **other}).encode()


SAME, TEXTS, IMAGES = ("same", "same"), ("same", "other"), ("other", "other")


@pytest.mark.parametrize(
    ("change", "content"),
    [
        ({}, SAME),
        ({"txt": b"photo number X"}, TEXTS),
        ({"txt": None}, SAME),  # the metadata has it as well
        ({"json": meta(2, caption="x")}, TEXTS),
        ({"json": meta(2, width=41)}, TEXTS),
        ({"json": meta(9)}, IMAGES),
        ({"jpg": jpeg(9)}, IMAGES),
        ({"jpg": None}, IMAGES),
    ],
)
def test_what_of_a_shard_is_which_content(
    tmp_path: Path, change: dict[str, bytes | None], content: tuple[str, str]
) -> None:
    before = content_of(tmp_path / "a", {f"{n}": sample(n) for n in range(4)})
    after = content_of(tmp_path / "b", {f"{n}": sample(n, **(change if n == 2 else {})) for n in range(4)})
    pairs = (before.images, after.images), (before.samples, after.samples)
    assert tuple("same" if a == b else "other" for a, b in pairs) == content


def test_where_members_lie_is_no_content(tmp_path: Path) -> None:
    whole = {f"{n}": sample(n) for n in range(4)}
    turned = {key: dict(reversed(members.items())) for key, members in whole.items()}
    assert content_of(tmp_path / "a", whole) == content_of(tmp_path / "b", turned)


def content_of(folder: Path, samples: dict[str, dict[str, bytes]]) -> Content:
    write_tar(folder / "shards" / "0.tar", samples)
    pool, columns, index = indexed(folder / "shards", folder / "out")
    found = columns.record(index, pool.shards[0], ALL).content
    assert found is not None
    return found


def test_which_columns_are_made_of_raw_texts(tmp_path: Path) -> None:
    write(tmp_path / "shards", "photo")
    (tmp_path / "scores.csv").write_text("uid,s\n")
    spec = {
        "columns": [
            BLIP,
            {"name": "given", "import": {"from": str(tmp_path / "scores.csv"), "field": "s", "as": "score"}},
            {"name": "basic", "basic": {}},
            {"name": "faces", "faces": {}},
        ],
        "drop": [
            {"score": "given", "atLeast": 1},
            {"flag": "basic", "equals": False},
            {"score": "faces", "atLeast": 9},
        ],
    }
    planned = plan_run(parse_recipe(recipe(tmp_path / "out", tmp_path / "shards", mixtures=(RAW, MIXED), **spec)))
    assert {key for key, node in planned.nodes.items() if node.spec.reads_texts} == {"filter:basic", "score:raw"}


@pytest.mark.parametrize("change", ["touched", "larger", "moved", "parquet", "parquet touched"])
def test_every_change_is_another_state_and_manifest(tmp_path: Path, change: str) -> None:
    folder = write(tmp_path / "shards", "photo")
    (folder / "00000001.parquet").write_bytes(b"x")
    before = list_pool("p", LocalStorage(folder))
    if change == "touched":
        os.utime(folder / "00000001.tar", ns=(1, 1))
    elif change == "larger":
        write_tar(folder / "00000001.tar", {"a": sample(1)})
    elif change == "moved":
        folder.rename(tmp_path / "moved")
    elif change == "parquet":
        (folder / "00000001.parquet").unlink()
    else:
        os.utime(folder / "00000001.parquet", ns=(1, 1))
    after = list_pool("p", LocalStorage(tmp_path / "moved" if change == "moved" else folder))
    assert after.manifest != before.manifest
    changed = [a.name for a, b in zip(after.shards, before.shards, strict=True) if a.state != b.state]
    assert changed == (["00000000", "00000001"] if change == "moved" else ["00000001"])
    assert list_pool("p", after.source).manifest == after.manifest


def test_the_contents_file_says_what_the_index_found(tmp_path: Path) -> None:
    """It is what everyone goes by who isn't a worker, so it must be right, and it is small."""
    done = run(recipe(tmp_path / "out", write(tmp_path / "shards", "photo")))
    [path] = (tmp_path / "out/pools/pool/contents").iterdir()
    columns = Columns(done.storage, "pool")
    records = {s.name: columns.record(done.index, s, ALL).content for s in done.pool.shards}
    assert done.contents == records
    assert path.stat().st_size < 64 * len(records)
    path.unlink()
    again = plan_run(parse_recipe(recipe(tmp_path / "out", tmp_path / "shards")))
    assert again.contents == records
    assert path.exists()
    for record in (tmp_path / "out/pools/pool/columns").glob(f"{IndexStage.name}.*/00000001.*.done.json"):
        record.unlink()
    path.unlink()
    with pytest.raises(PermanentError, match="pool pool: not all of its shards are indexed; run the index first"):
        plan_run(parse_recipe(recipe(tmp_path / "out", tmp_path / "shards"))).mixture_folder(done.spec.mixtures[0])
