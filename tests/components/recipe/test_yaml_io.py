"""YAML is read as kubectl reads it, and what is written reads the same everywhere."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from components.base.errors import PermanentError
from components.recipe.yaml_io import dump_yaml, read_yaml

READ = {  # what kubectl 1.32 made of each
    "1e-3": 0.001, "5e3": 5000, "1.5E3": 1500, "5.": 5, "-.5": -0.5, "1.e3": 1000, "08": 8, "0.30": 0.3,
    "017": 15, "0o17": 15, "0x1F": 31, "0b11": 3, "1_000": 1000, "+5": 5,
    "12:30:45": "12:30:45", "1:30": "1:30", "2026-01-02": "2026-01-02", "2026-01-02T03:04:05Z": "2026-01-02T03:04:05Z",
    "yes": True, "y": True, "On": True, "n": False, "OFF": False, "TRUE": True,
    "~": None, "null": None, "NULL": None,
    "1e": "1e", "e5": "e5", "0x": "0x", "_1": "_1", "v1.2": "v1.2", "CC-MAIN-2026-43": "CC-MAIN-2026-43",
    "'1e3'": "1e3", "!!str 5": "5", "!!int '5'": 5,
}  # fmt: skip


@pytest.mark.parametrize("text", READ)
def test_a_scalar_is_read_as_kubectl_reads_it(text: str) -> None:
    found = read_yaml(f"v: {text}", "here")["v"]
    assert found == READ[text]
    assert isinstance(found, bool) == isinstance(READ[text], bool)


def test_kubectl_reads_the_same() -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl")
    text = "apiVersion: v1\nkind: Thing\nmetadata: {name: x}\nread:\n" + "".join(f"- {text}\n" for text in READ)
    local = ["kubectl", "patch", "--local", "--type=merge", "-p", "{}", "-o", "json", "-f", "-"]
    done = subprocess.run(local, input=text, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["read"] == read_yaml(text, "here")["read"] == list(READ.values())


def test_keys_are_texts() -> None:
    assert read_yaml("{5: a, yes: b, null: c}", "here") == {"5": "a", "true": "b", "null": "c"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", "here: not YAML: key a comes twice"),
        ("a: !!int x", "here: not YAML: "),
        ("a: !!bool x", "here: not YAML: "),
        ("a: 1\n---\nb: 2", "here: not YAML: expected a single document"),
        ("a: *b", "here: not YAML: found undefined alias"),
        ("[1]", "here: expected a mapping with apiVersion"),
    ],
)
def test_what_is_no_mapping_in_yaml_is_one_line(text: str, message: str) -> None:
    with pytest.raises(PermanentError) as caught:
        read_yaml(text, "here")
    assert str(caught.value).startswith(message)
    assert len(str(caught.value).splitlines()) == 1


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=8)
) | st.sampled_from([key.strip("'") for key in READ])


@given(st.dictionaries(st.text(max_size=4), st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3))))
def test_what_is_written_reads_the_same(value: dict[str, Any]) -> None:
    text = dump_yaml(value)
    assert read_yaml(text, "here") == value
    assert yaml.safe_load(text) == value
