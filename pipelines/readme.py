"""Writes the stage table of README.md from the stages' declarations."""

from __future__ import annotations

from pathlib import Path

from pipelines.planning.estimate import stage_rows

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- stages: written by `make stages` -->", "<!-- end of stages -->"


def with_table(text: str) -> str:
    """The README's text with a fresh stage table between its two marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    head = ("| stage | what it does | reads | writes | needs |", "|---|---|---|---|---|")
    rows = ["| " + " | ".join(row) + " |" for row in stage_rows()]
    return "\n".join([before + BEGIN, *head, *rows, END + after])


if __name__ == "__main__":
    README.write_text(with_table(README.read_text()))
