"""python -m benchmarks [NAME ...]: run them all, or the named ones."""

from __future__ import annotations

import sys

from . import startup

BENCHMARKS = {"startup": startup.main}


def main(names: list[str]) -> None:
    if unknown := set(names) - set(BENCHMARKS):
        sys.exit(f"no benchmark named {', '.join(sorted(unknown))}: there are {', '.join(BENCHMARKS)}")
    for name in names or BENCHMARKS:
        BENCHMARKS[name]()


main(sys.argv[1:])
