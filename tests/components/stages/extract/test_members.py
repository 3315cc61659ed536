"""Reading past damage: what is whole is read, what is not is told with its place, and nothing is silent."""

from __future__ import annotations

import io
import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.base.errors import TemporaryError
from components.stages.extract import members
from components.stages.extract.members import Damage, read_members
from tests.components.stages.extract.archives import member, record

CONTENTS = [record("metadata", random.Random(i).randbytes(3000 + 500 * i)) for i in range(6)]
MEMBERS = [member(content) for content in CONTENTS]
WHOLE = b"".join(MEMBERS)
STARTS = [sum(map(len, MEMBERS[:i])) for i in range(len(MEMBERS) + 1)]


def read(data: bytes) -> tuple[list[bytes], list[Damage]]:
    found = list(read_members(io.BytesIO(data)))
    return [f for f in found if isinstance(f, bytes)], [f for f in found if isinstance(f, Damage)]


def without(*numbers: int) -> list[bytes]:
    return [content for i, content in enumerate(CONTENTS) if i not in numbers]


def test_a_whole_file_and_an_empty_one() -> None:
    assert read(WHOLE) == (CONTENTS, [])
    assert read(b"") == ([], [])


@pytest.mark.parametrize(
    "at", [STARTS[2], STARTS[2] + 2, STARTS[2] + 700, STARTS[3] - 6], ids=["magic", "head", "middle", "checksum"]
)
def test_a_damaged_member_costs_only_itself(at: int) -> None:
    data = bytearray(WHOLE)
    data[at : at + 4] = bytes(b ^ 0xFF for b in data[at : at + 4])
    contents, damages = read(bytes(data))
    assert contents == without(2)
    assert [(d.offset, d.bytes) for d in damages] == [(STARTS[2], len(MEMBERS[2]))]


def test_bytes_between_members_are_told() -> None:
    junk = b"x" * 700
    contents, [damage] = read(b"".join(MEMBERS[:2]) + junk + b"".join(MEMBERS[2:]))
    assert contents == CONTENTS
    assert (damage.offset, damage.bytes) == (STARTS[2], 700)


@pytest.mark.parametrize("cut", [1, 8, 500, len(MEMBERS[5]) - 3])
def test_a_truncated_file_keeps_what_came_before(cut: int) -> None:
    contents, [damage] = read(WHOLE[:-cut])
    assert contents == without(5)
    assert (damage.offset, damage.bytes) == (STARTS[5], len(MEMBERS[5]) - cut)
    assert "ends inside" in damage.reason


def test_what_is_no_gzip_at_all_is_one_damage() -> None:
    page = b"<html>404 Not Found</html>" * 100
    contents, [damage] = read(page)
    assert contents == []
    assert (damage.offset, damage.bytes) == (0, len(page))


def test_a_member_that_expands_without_end_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "LARGEST", 1 << 20)
    bomb = member(bytes(50 << 20))
    contents, [damage] = read(MEMBERS[0] + bomb + MEMBERS[1])
    assert contents == CONTENTS[:2]
    assert (damage.offset, damage.bytes, damage.reason) == (len(MEMBERS[0]), len(bomb), "a record of more than 1 MiB")


def test_a_search_that_finds_no_whole_member_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here every guess unpacks the same bomb: a hundred file names of a gzip header, each in the other."""
    monkeypatch.setattr(members, "LARGEST", 1 << 20)
    monkeypatch.setattr(members, "MOST_GUESSED", 10 << 20)
    named = b"\x1f\x8b\x08\x08\x01\x01\x01\x01\x01\x01"
    data = named * 100 + b"\x00" + member(bytes(2 << 20))[10:]
    file = Counted(MEMBERS[0] + data + MEMBERS[1])
    contents = list(read_members(file))
    assert contents[0] == CONTENTS[0]
    assert contents[1:] == [Damage(len(MEMBERS[0]), len(data + MEMBERS[1]), "a record of more than 1 MiB")]
    assert file.seeks < 20


class Counted(io.BytesIO):
    seeks = 0

    def seek(self, *where: int) -> int:
        self.seeks += 1
        return super().seek(*where)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_whatever_is_broken_the_bytes_add_up(data: st.DataObject) -> None:
    broken = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(broken) - 1))
        length = data.draw(st.integers(1, 6000))
        broken[at : at + length] = data.draw(st.one_of(st.just(b""), st.binary(min_size=1, max_size=200)))
        broken = broken or bytearray(b"x")
    contents, damages = read(bytes(broken))
    for piece in (128, 4096):  # reading in other pieces finds the same
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(members, "BLOCK", 1000)
            patch.setattr(members, "PIECE", piece)
            again, places = read(bytes(broken))
        assert again == contents
        assert [(d.offset, d.bytes) for d in places] == [(d.offset, d.bytes) for d in damages]
    assert set(contents) <= set(CONTENTS)
    kept = sum(len(MEMBERS[CONTENTS.index(c)]) for c in contents)
    assert kept + sum(d.bytes for d in damages) == len(broken)
    assert all(a.offset + a.bytes < b.offset for a, b in pairwise(damages))


def test_a_disk_that_fails_is_no_damage() -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(TemporaryError, match="Input/output error"):
        list(read_members(Failing(WHOLE)))
