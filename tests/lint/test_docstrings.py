"""The docstring lint: what counts as a fragment, what passes, and what it prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lint.docstrings import main

OPENINGS = [
    "Of the rows, those that are left.",
    "What the stage came to.",
    "Whether it is done.",
    "The rows that are left.",
    "One row per mixture.",
    "(B, 3) float32 of the images.",
    "`part`: which one it is.",
    "Seconds since the last look.",
    "Raises PermanentError: there is no such file.",
    "Decoded image.",
    "50.0 is 50.",
]


def _module(folder: Path, *functions: str) -> Path:
    (folder / "module.py").write_text("\n".join(functions))
    return folder


def _function(opening: str, name: str = "f") -> str:
    return f'def {name}():\n    """{opening}"""\n'


@pytest.mark.parametrize("opening", OPENINGS)
def test_a_fragment_fails_and_is_shown_with_its_place(
    opening: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = main([str(_module(tmp_path, "", "", _function(opening)))])
    assert error is not None
    shown = capsys.readouterr().out
    assert f"{tmp_path}/module.py:4: {opening}" in shown
    assert "1 of 1 docstrings of functions open with a fragment: 100.0%" in shown


@pytest.mark.parametrize(
    "opening", ["Return the rows that are left.", "Pass the rows on.", "Embed texts.", "Re-read the file.", "Do it."]
)
def test_a_verb_passes(opening: str, tmp_path: Path) -> None:
    assert main([str(_module(tmp_path, _function(opening)))]) is None


def test_private_nested_and_async_functions_and_methods_are_looked_at(tmp_path: Path) -> None:
    nested = '    async def _inner(self):\n        def g():\n            """What it does."""\n'
    assert main([str(_module(tmp_path, 'class C:\n    """What it is."""\n', nested))]) is not None


def test_a_property_names_what_it_is_and_a_class_is_a_noun(tmp_path: Path) -> None:
    source = 'class C:\n    """The rows."""\n    @property\n    def size(self):\n        """Bytes of all rows."""\n'
    assert (
        main([str(_module(tmp_path, source, '    @cached_property\n    def s(self):\n        """The sum."""\n'))])
        is None
    )
    folder = tmp_path / "bad"
    folder.mkdir()
    assert main([str(_module(folder, source.replace("Bytes of all", "Of all")))]) is not None


def test_less_than_three_percent_pass(tmp_path: Path) -> None:
    verbs = [_function("Return it.", f"f{number}") for number in range(97)]
    three = [_function("Of it.", f"g{number}") for number in range(3)]
    assert main([str(_module(tmp_path, *verbs, *three))]) is not None
    assert main([str(_module(tmp_path, *verbs, *three[1:]))]) is None
