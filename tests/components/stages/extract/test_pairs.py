"""Sorting, cutting and deduplicating tables, against sets."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from components.stages.extract.pairs import COLLISION, DUPLICATE, SCHEMA, SPACE, bounds_of, cut, hexadecimal, sort_once

Row = tuple[bytes, str, str]
# Few uids, so that they meet; of one uid two pairs, so that they collide
uids = st.builds(
    lambda a, b: bytes([a]) + b"\x00" * 14 + bytes([b]), st.sampled_from([0, 1, 127, 128, 255]), st.integers(0, 2)
)
rows = st.lists(st.tuples(uids, st.sampled_from(["http://a", "http://b"]), st.sampled_from(["x", "é", ""])))


def table_of(some: list[Row]) -> pa.Table:
    return pa.table([pa.array([row[i] for row in some], f.type) for i, f in enumerate(SCHEMA)], schema=SCHEMA)


def rows_of(table: pa.Table) -> list[Row]:
    return [(row["uid"], row["url"], row["text"]) for row in table.to_pylist()]


@given(rows)
@settings(deadline=None)  # the first call loads Arrow's functions
def test_each_uid_once_with_its_least_pair(some: list[Row]) -> None:
    least: dict[bytes, tuple[str, str]] = {}
    for uid, *pair in some:
        least[uid] = min(least.get(uid, (pair[0], pair[1])), (pair[0], pair[1]))
    table, lost = sort_once(table_of(some))
    assert rows_of(table) == [(uid, *least[uid]) for uid in sorted(least)]
    others = sum((row[1], row[2]) != least[row[0]] for row in some)
    assert (lost[COLLISION], lost[DUPLICATE]) == (others, len(some) - len(least) - others)


@given(rows, rows)
def test_grouping_does_not_show(one: list[Row], other: list[Row]) -> None:
    first, lost = sort_once(table_of(one))
    grouped, more = sort_once(pa.concat_tables([first, sort_once(table_of(other))[0]]))
    whole, all_lost = sort_once(table_of(other + one))
    assert grouped.equals(whole)
    assert all_lost.total() == len(one) + len(other) - whole.num_rows
    assert lost.total() + more.total() <= all_lost.total()


@given(rows, st.integers(1, 9), st.integers(0, 40))
def test_cutting_loses_nothing_and_keeps_uids_apart(some: list[Row], parts: int, skipped: int) -> None:
    table = sort_once(table_of(some))[0].slice(skipped)  # a slice has an offset
    found = cut(table, bounds_of(0, SPACE, parts))
    assert len(found) == parts
    assert pa.concat_tables(found).equals(table.combine_chunks())
    for number, part in enumerate(found):
        assert all(int.from_bytes(row[0][:4], "big") * parts // SPACE == number for row in rows_of(part))


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_bounds_of_bounds_meet(parts: int, passes: int) -> None:
    outer = bounds_of(0, SPACE, parts)
    assert (outer[0], outer[-1]) == (0, SPACE)
    assert outer == sorted(outer)
    inner = bounds_of(outer[0], outer[1], passes)
    assert (inner[0], inner[-1]) == (outer[0], outer[1])
    assert inner == sorted(inner)


def test_uids_as_datacomp_writes_them() -> None:
    assert hexadecimal(pa.array([bytes(range(16))], pa.binary(16))).to_pylist() == ["000102030405060708090a0b0c0d0e0f"]
