"""Writes the images' packages with their hashes: pip installs no other file under these versions, wherever it is from.

The versions are those of constraints.txt, which `make lock` writes first. Each list has what the one before it lacks,
as the images are built on top of each other.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

FOLDER = Path(__file__).parent
PROJECT = FOLDER.parent / "pyproject.toml"
EXTRAS = {"operator": ["s3"], "cpu": ["s3", "cpu"], "gpu": ["s3", "stages"]}
PLATFORM = ["--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28"]  # of images/Dockerfile
ENTRY = re.compile(r"^[A-Za-z0-9].*(?:\n .*)*", re.MULTILINE)
HEAD = "# Written by `make lock`. Packages of the image {name} that the images below it lack.\n"


def compiled(*what: str) -> list[str]:
    """Return the requirements that a resolver finds for these, each with its hashes."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--generate-hashes", "--no-annotate"]
    command += ["--no-header", "--constraints", str(FOLDER / "constraints.txt"), *PLATFORM, *what]
    return ENTRY.findall(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Write images/build.txt, operator.txt, cpu.txt and gpu.txt."""
    wanted = FOLDER / "build.in"
    wanted.write_text("".join(f"{line}\n" for line in tomllib.loads(PROJECT.read_text())["build-system"]["requires"]))
    lists = {"build": compiled(str(wanted))}
    wanted.unlink()
    below: set[str] = set()
    for name, extras in EXTRAS.items():
        found = compiled(str(PROJECT), *(f"--extra={extra}" for extra in extras))
        lists[name] = [entry for entry in found if entry not in below]
        below.update(found)
    for name, entries in lists.items():
        (FOLDER / f"{name}.txt").write_text(HEAD.format(name=name) + "".join(f"{entry}\n" for entry in entries))


if __name__ == "__main__":
    main()
