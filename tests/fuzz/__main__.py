"""Runs the hostile inputs of some kinds, or of all."""

from __future__ import annotations

import argparse
import secrets
import subprocess
import sys

from tests.fuzz.kinds import KINDS
from tests.fuzz.limits import run_cases

CASES = 300


def main() -> int:
    """Run each kind in a process of its own, so that its memory is its own; return how many misbehaved."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("kinds", nargs="*", choices=[*KINDS, []], metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 31))
    parser.add_argument("--cases", type=int, default=CASES, help="inputs of each kind")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    options = parser.parse_args()
    kinds = options.kinds or list(KINDS)
    if len(kinds) == 1:
        run_cases(kinds[0], KINDS[kinds[0]], options.seed, range(options.first, options.first + options.cases))
        print(f"{kinds[0]}: {options.cases} inputs of seed {options.seed}: a result or a reason for each")
        return 0
    common = [f"--seed={options.seed}", f"--cases={options.cases}", f"--first={options.first}"]
    return sum(subprocess.call([sys.executable, "-m", "tests.fuzz", kind, *common]) != 0 for kind in kinds)


if __name__ == "__main__":
    sys.exit(main())
