"""Text of others in one line that a terminal shows and doesn't obey."""

from __future__ import annotations

import pytest

from components.base.printable import printable, printable_lines


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a plain text, naïve 猫 👩‍🚀", "a plain text, naïve 猫 👩‍🚀"),
        ("\x1b[31mred\x1b[0m", "[31mred[0m"),
        ("\x1b]0;title\x07", "]0;title"),
        ("\x9b2J", "2J"),
        ("two\r\nlines\tand\u2028more\x85", "two  lines and more "),
        ("\0a\x7fb\ufeffc", "abc"),
        ("gpj\u202egpj.exe\u2066", "gpjgpj.exe"),
        ("half \ud800 a pair", "half  a pair"),
        ("", ""),
    ],
)
def test_what_a_terminal_would_obey_is_left_out(text: str, expected: str) -> None:
    assert printable(text) == expected


def test_a_long_text_is_cut() -> None:
    assert printable("x" * 10, 10) == "x" * 10
    assert printable("x" * 11, 10) == printable("x" * 10**6, 10) == "x" * 9 + "…"
    assert printable("\0" * 100 + "x", 10) == "…"


def test_the_lines_of_a_message_stay_lines() -> None:
    assert printable_lines("a\x1b[2J\nb\tc\r\nd") == "a[2J\nb c\nd"
