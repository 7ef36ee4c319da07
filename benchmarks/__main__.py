"""python -m benchmarks [--quick] [NAME ...]: run them all, or the named ones; --quick: fewer repetitions.

Those that take more options: python -m benchmarks.server, .retrieval, .crash.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from . import delay, retrieval, server, startup

BENCHMARKS: dict[str, Callable[[bool], None]] = {
    "startup": startup.main,
    "server": server.main,
    "delay": delay.main,
    "retrieval": lambda quick: retrieval.main(["--quick"] if quick else []),
}


def main(arguments: list[str]) -> None:
    names = [argument for argument in arguments if argument != "--quick"]
    if unknown := set(names) - set(BENCHMARKS):
        sys.exit(f"no benchmark named {', '.join(sorted(unknown))}: there are {', '.join(BENCHMARKS)}")
    for name in names or BENCHMARKS:
        BENCHMARKS[name]("--quick" in arguments)


main(sys.argv[1:])
