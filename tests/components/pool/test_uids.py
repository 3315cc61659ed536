"""One identity has one form, however a pool, a table or a subset file writes it."""

from __future__ import annotations

from decimal import Decimal
from uuid import UUID

import pyarrow as pa
import pytest

from components.pool.uids import canonical_uid, canonical_uids, is_uid

HEX = "0123456789abcdef0123456789abcdef"
DASHED = "01234567-89ab-cdef-0123-456789abcdef"
WIDE = UUID(HEX).int
FORMS = [
    HEX, HEX.upper(), f" {HEX}\n", DASHED, DASHED.upper(), f"{{{DASHED}}}", f"{{{HEX}}}", f"urn:uuid:{DASHED}",
    UUID(HEX), UUID(HEX).bytes, HEX.encode(), DASHED.upper().encode(), WIDE, str(WIDE), Decimal(WIDE),
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_128_bit_uid(form: object) -> None:
    assert is_uid(form)
    assert canonical_uid(form) == HEX


@pytest.mark.parametrize("forms", [[17, "17", b"17", 17.0, Decimal(17)], [0, "0", b"0", 0.0], ["img-1", b"img-1"]])
def test_other_identities_meet_whatever_their_type(forms: list[object]) -> None:
    assert all(map(is_uid, forms))
    assert len({canonical_uid(form) for form in forms}) == 1


def test_different_identities_stay_different() -> None:
    forms: list[object] = [
        0,
        1,
        "00",
        "a",
        "A",
        f"{DASHED}-",
        f"{HEX}0",
        b"sixteen letters!",
        b"\xff",
        b"\xfe",
        -1,
        1 << 64,
    ]
    assert len({canonical_uid(form) for form in forms}) == len(forms)


@pytest.mark.parametrize("form", [None, "", " \t", b"", True, False, 0.5, float("nan"), [1], {"a": 1}])
def test_what_is_no_uid(form: object) -> None:
    assert not is_uid(form)


ARRAYS = [
    pa.array([HEX.upper(), None, ""]),
    pa.array([HEX, None, " "], pa.large_string()),
    pa.array([DASHED, None, None], pa.string_view()),
    pa.array([DASHED.upper(), None, "img"]),
    pa.array([HEX, None, HEX.upper()]).dictionary_encode(),
    pa.array([HEX.encode(), None, b"\xff"], pa.binary()),
    pa.array([UUID(HEX).bytes, None, b"\x00" * 16], pa.binary(16)),
    pa.array([UUID(HEX).bytes, None, None], pa.large_binary()),
    pa.array([HEX.encode(), None, None], pa.binary_view()),
    pa.ExtensionArray.from_storage(pa.uuid(), pa.array([UUID(HEX).bytes, None, b"\x01" * 16], pa.binary(16))),
    pa.array([WIDE % 10**38, None, 17], pa.decimal128(38)),
    pa.array([WIDE, None, 17], pa.decimal256(40)),
    pa.array([17, None, 0], pa.uint64()),
    pa.array([-1, None, 0], pa.int8()),
    pa.nulls(3),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: str(array.type))
def test_an_array_of_uids_is_as_its_values(array: pa.Array) -> None:
    found = canonical_uids(array)
    assert found.type == pa.string()
    values = [value if is_uid(value) else None for value in array.to_pylist()]
    assert found.to_pylist() == [None if value is None else canonical_uid(value) for value in values]
    assert canonical_uids(array.slice(1)).to_pylist() == found.to_pylist()[1:]


@pytest.mark.parametrize(
    "array", [pa.array([0.5]), pa.array([[1]]), pa.array([True])], ids=lambda array: str(array.type)
)
def test_an_array_of_something_else(array: pa.Array) -> None:
    with pytest.raises(ValueError, match=r"^uid has dtype .*, expected text, a whole number or bytes$"):
        canonical_uids(array)
