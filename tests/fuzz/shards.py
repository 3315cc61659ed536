"""Shards: tars of any members, damaged or not, and parquets beside them; the index tells what became of each image."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
from collections import Counter
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq

from components.base.errors import RecaptionError
from components.stages.index.stage import IMAGES
from tests.fuzz.damage import damaged, text, value
from tests.fuzz.limits import check_lines, check_reason
from tests.pools import indexed, jpeg

REASONS = 40  # kinds of reasons of one shard
ENDINGS = ("jpg", "jpg", "JPG", "png", "txt", "txt", "json", "json", "npy", "input.jpg", "")
PICTURE = jpeg(1)
UID = re.compile("[0-9a-f]{32}")


def shard(chance: Random, folder: Path) -> None:
    """Index a shard of any members; every image of a whole tar is a row, or is counted."""
    tar, images = _tar(chance)
    whole = chance.random() < 0.5
    tar = tar if whole else damaged(chance, tar)
    tar = gzip.compress(tar, 1) if chance.random() < 0.05 else tar
    shards = folder / "shards"
    shards.mkdir()
    (shards / "00000000.tar").write_bytes(tar)
    if chance.random() < 0.5:
        beside = _beside(chance)
        (shards / "00000000.parquet").write_bytes(beside if whole else damaged(chance, beside))
    try:
        pool, columns, index = indexed(shards, folder / "out")
    except RecaptionError as error:
        check_lines(error)
        return
    record = columns.record(index, pool.shards[0], "all")
    assert record is not None
    failures = dict(record.failures)
    assert len(failures) <= REASONS, failures
    for reason in failures:
        check_reason(reason)
    rows = columns.read(index, pool.shards[0]).to_pylist()
    usable = [row for row in rows if row["error"] is None]
    assert len({row["uid"] for row in usable}) == len(usable)
    for row in usable:
        assert UID.fullmatch(row["uid"]), row
        assert 0 <= row["offset"] <= row["offset"] + row["size"] <= len(tar)
        assert row["text"] is None or ("\0" not in row["text"] and row["text"].strip() == row["text"])
    if whole and not tar.startswith(b"\x1f\x8b"):
        assert images <= len(rows) + Counter(failures).total(), f"{images} images, {len(rows)} rows, {failures}"


KINDS = {"shard": shard}


def _tar(chance: Random) -> tuple[bytes, int]:
    """Write a tar; return it with its number of images."""
    sink, images = io.BytesIO(), 0
    form = chance.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    with tarfile.open(fileobj=sink, mode="w", format=form, errors="surrogateescape") as archive:
        for number in range(chance.randint(0, 12)):
            ending = chance.choice(ENDINGS)
            info = tarfile.TarInfo(_name(chance, number, ending))
            data = _content(chance, ending.lower())
            info.size = len(data)
            info.type = tarfile.REGTYPE if chance.random() < 0.95 else chance.choice(b"12345gx").to_bytes(1, "big")
            try:
                archive.addfile(info, io.BytesIO(data) if info.isreg() else None)
            except (ValueError, UnicodeEncodeError):  # a name that this format can't hold
                continue
            images += info.isreg() and ending.rpartition(".")[2].lower() in IMAGES and info.name.count(".") > 0
    return sink.getvalue(), images


def _name(chance: Random, number: int, ending: str) -> str:
    key = chance.choice((f"{number // 3:04d}", f"a/{number // 3}", f"./{number // 3}", f"IMG_v1.0_{number}", "same"))
    if chance.random() < 0.05:
        key += text(chance, long=False).replace("/", "").replace("\0", "")
    return f"{key}.{ending}" if ending else key


def _content(chance: Random, ending: str) -> bytes:
    if ending in IMAGES:
        return PICTURE if chance.random() < 0.8 else chance.randbytes(chance.randint(0, 50))
    if ending == "json":
        meta = {"uid": _uid(chance), "caption": text(chance), "width": value(chance), "height": value(chance)}
        meta |= {"more": "x" * 200_000} if chance.random() < 0.05 else {}
        written = json.dumps(value(chance) if chance.random() < 0.1 else meta)
        return b"[" * 100_000 if chance.random() < 0.03 else written.encode("utf-8", "surrogatepass")
    return text(chance).encode() if chance.random() < 0.9 else chance.randbytes(20)


def _uid(chance: Random) -> object:
    number = chance.randrange(1 << 128)
    forms = (f"{number:032x}", f"{number:032X}", f"{{{number:032x}}}", number, 0, None, "", True, value(chance))
    return chance.choice(forms) if chance.random() < 0.8 else f"{chance.randint(0, 3):032x}"


def _beside(chance: Random) -> bytes:
    count = chance.randint(0, 8)
    columns = {
        "key": [f"{chance.randint(0, 3):04d}" for _ in range(count)],
        "status": [chance.choice(("success", "failed_to_download", None, "\x1b[31m")) for _ in range(count)],
        "error_message": [text(chance, long=False) if chance.random() < 0.8 else None for _ in range(count)],
        "uid": [chance.randbytes(16) for _ in range(count)],
    }
    uids = chance.choice((pa.binary(), pa.string(), pa.string_view(), pa.binary(16)))
    columns["uid"] = [u.hex() if pa.types.is_string(uids) or uids == pa.string_view() else u for u in columns["uid"]]
    arrays = [pa.array(v, uids if name == "uid" else pa.string()) for name, v in columns.items()]
    names = [name if chance.random() < 0.97 else "uid" for name in columns]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, names), sink)
    return sink.getvalue()
