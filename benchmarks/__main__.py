"""python -m benchmarks [NAME ...]: run them all, or the named ones. Those that take options: python -m benchmarks.NAME."""

from __future__ import annotations

import sys
from collections.abc import Callable

from . import retrieval, startup

BENCHMARKS: dict[str, Callable[[], None]] = {
    "startup": startup.main,
    "retrieval": lambda: retrieval.main(["--quick"]),
}


def main(names: list[str]) -> None:
    if unknown := set(names) - set(BENCHMARKS):
        sys.exit(f"no benchmark named {', '.join(sorted(unknown))}: there are {', '.join(BENCHMARKS)}")
    for name in names or BENCHMARKS:
        BENCHMARKS[name]()


main(sys.argv[1:])
