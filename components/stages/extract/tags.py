"""The tags of an HTML page that name images, without building its tree.

HTML's tokenizer as one regular expression whose time is linear in the page: tree builders take quadratic time on
deeply nested pages (lexbor a minute for 100,000 open <div>s), and among billions of pages there are such.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

IMG, SOURCE, BASE, PICTURE, PICTURE_END = "img", "source", "base", "picture", "/picture"
_WANTED = {IMG, SOURCE, BASE, PICTURE, PICTURE_END}

# Up to the > that is not in quotes; at the end of the page an open tag or quote ends with it, and isn't wanted
_ATTRIBUTES = r"""[^>"']*+(?:(?:"[^"]*+(?:"|\Z)|'[^']*+(?:'|\Z))[^>"']*+)*+"""
_TOKEN = re.compile(
    rf"""<(?:
        !--(?:-?>|.*?(?:--!?>|\Z))                                  # a comment
      | [!?][^>]*+(?:>|\Z)                                          # a doctype, or what browsers take for a comment
      | (?P<raw>script|style|textarea|title|xmp|iframe|noembed|noframes)(?=[\s/>]){_ATTRIBUTES}>
        .*?(?:</(?P=raw)(?=[\s/>])|\Z)                              # text, whatever is in it
      | (?P<name>/?[a-z][^\s/>]*+)(?P<attributes>{_ATTRIBUTES})(?P<end>>|\Z)
    )""",
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)
_ATTRIBUTE = re.compile(r"""([^\s/>=][^\s/>=]*+)(?:\s*+=\s*+(?:"([^"]*+)"|'([^']*+)'|([^\s>"'][^\s>]*+)))?+""")


def read_tags(page: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield name and attributes of <img>, <source>, <base> and <picture>, in order; entities are left as they are.

    Where several attributes have one name, the first counts, as in HTML.
    """
    for token in _TOKEN.finditer(page):
        name = token["name"]
        if name and (name := name.lower()) in _WANTED and token["end"]:
            found: dict[str, str] = {}
            for attribute, *values in _ATTRIBUTE.findall(token["attributes"]):
                found.setdefault(attribute.lower(), "".join(values))
            yield name, found
