"""python -m benchmarks.crash [--kills N] [--seed N]: exit 0 if every promise held, else 1 with each that did not."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from tempfile import TemporaryDirectory

from .suite import run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crash")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=None, help="else a random one, which is printed")
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--folder", help="keep the database and the server's log here")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(2**32)
    print(f"seed {seed}, {options.kills} kills, {options.clients} clients", flush=True)
    with TemporaryDirectory() as temporary:
        violations = asyncio.run(run(options.folder or temporary, options.kills, seed, options.clients))
    for violation in violations[:50]:
        print("VIOLATION", violation)
    sys.exit(1 if violations else 0)


main()
