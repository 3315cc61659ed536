"""Writes every generated part of the pages anew."""

from __future__ import annotations

from pipelines.pages.parts import pages, with_parts

for page in pages():
    text = page.read_text(encoding="utf-8")
    if (fresh := with_parts(text)) != text:
        page.write_text(fresh, encoding="utf-8")
        print(f"written: {page}")
