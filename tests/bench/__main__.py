"""Runs every benchmark in a process of its own, so that each one's peak memory is its own."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

BENCHES = (
    "worker",
    "mix",
    "reshard",
    "published",
    "storage",
    "download",
    "extract",
    "tables",
    "dedup",
    "screen",
    "scale",
)


def main(names: list[str]) -> None:
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    for name in names or BENCHES:
        script = Path(__file__).with_name(f"{name}.py")
        result = subprocess.run(
            [sys.executable, "-m", f"tests.bench.{script.stem}"], check=True, stdout=subprocess.PIPE
        )
        for line in result.stdout.decode().splitlines():
            for key, value in json.loads(line).items():
                print(f"{name:<8} {key:<58} {value}")


if __name__ == "__main__":
    main(sys.argv[1:])
