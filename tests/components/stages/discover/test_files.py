"""The files of a dump: whole, sampled, from a folder and over HTTP."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.base.errors import PermanentError
from components.stages.discover import files
from components.stages.discover.files import find_dump, list_files
from tests.components.storage.web_server import LOOPBACK, mirror

DUMP = "CC-MAIN-2026-43"
LIST = f"crawl-data/{DUMP}/wat.paths.gz"
FILES = [f"crawl-data/{DUMP}/segments/1{n % 7}/wat/CC-MAIN-20261012-{n:05d}.warc.wat.gz" for n in range(50)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("mirror")
    write(folder, LIST, gzip.compress("".join(f"{file}\n" for file in FILES).encode()))
    return str(folder)


def write(folder: Path, path: str, data: bytes) -> None:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(data)


def test_all_files_in_the_dumps_order(base: str) -> None:
    assert list_files(DUMP, base=base) == FILES


def test_over_http() -> None:
    data = gzip.compress("\r\n".join([*FILES, FILES[0], ""]).encode())
    with mirror({LIST: data}, faults=[503]) as served:
        assert list_files(DUMP, base=served.url, allow_networks=LOOPBACK) == FILES


def test_a_list_in_several_members(tmp_path: Path) -> None:
    write(tmp_path, LIST, b"".join(gzip.compress(f"{file}\n".encode()) for file in FILES))
    assert list_files(DUMP, base=str(tmp_path)) == FILES


def test_a_list_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LIMIT", 30)
    write(tmp_path, LIST, gzip.compress("".join(f"{file}\n" for file in FILES).encode()))
    with pytest.raises(PermanentError, match=r"wat\.paths\.gz: has more than 30 bytes"):
        list_files(DUMP, base=str(tmp_path))


@given(st.integers(1, 50), st.integers(1, 50), st.integers(0, 9))
@settings(deadline=None)
def test_a_larger_sample_contains_a_smaller_one(base: str, one: int, other: int, seed: int) -> None:
    small, large = (list_files(DUMP, base=base, sample=n, seed=seed) for n in sorted((one, other)))
    assert len(small) == min(one, other)
    assert set(small) <= set(large)
    assert large == [file for file in FILES if file in set(large)]


def test_another_seed_is_another_sample(base: str) -> None:
    samples = {tuple(list_files(DUMP, base=base, sample=10, seed=seed)) for seed in range(5)}
    assert len(samples) == 5


@pytest.mark.parametrize("sample", [0, 51])
def test_a_sample_that_is_none(base: str, sample: int) -> None:
    with pytest.raises(PermanentError, match=f"a sample of {sample} files was asked for, the dump has 50"):
        list_files(DUMP, base=base, sample=sample)


def test_lists_that_are_none(tmp_path: Path, base: str) -> None:
    with pytest.raises(PermanentError, match=r"cannot read .*warc\.paths\.gz: no such file"):
        list_files(DUMP, "warc", base)
    for data in (b"<html>", gzip.compress(b"\xff\xfe")):
        write(tmp_path, LIST, data)
        with pytest.raises(PermanentError, match="expected gzipped lines"):
            list_files(DUMP, base=str(tmp_path))
    write(tmp_path, LIST, gzip.compress(b"a.gz\nb.gz\n")[:-9])  # files that it doesn't list would never be missed
    with pytest.raises(PermanentError, match=r"found a file that is cut off; expected gzipped lines, a path on each"):
        list_files(DUMP, base=str(tmp_path))
    write(tmp_path, LIST, gzip.compress(b"\n"))
    with pytest.raises(PermanentError, match="lists no file"):
        list_files(DUMP, base=str(tmp_path))


def test_the_dump_that_is_meant(tmp_path: Path) -> None:
    (tmp_path / "collinfo.json").write_text(json.dumps([{"id": "CC-MAIN-2026-38"}, {"id": DUMP}]))
    assert find_dump("latest", str(tmp_path)) == DUMP
    assert find_dump("CC-MAIN-2013-20", "nowhere") == "CC-MAIN-2013-20"
    with pytest.raises(PermanentError, match="expected latest, or an id"):
        find_dump("2026-43")
    (tmp_path / "collinfo.json").write_text("[]")
    with pytest.raises(PermanentError, match="lists none"):
        find_dump("latest", str(tmp_path))
