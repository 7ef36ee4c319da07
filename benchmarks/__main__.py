"""python -m benchmarks [--quick] [NAME ...]: run them all, or the named ones; --quick: fewer repetitions."""

from __future__ import annotations

import sys

from . import server, startup

BENCHMARKS = {"startup": startup.main, "server": server.main}


def main(arguments: list[str]) -> None:
    names = [argument for argument in arguments if argument != "--quick"]
    if unknown := set(names) - set(BENCHMARKS):
        sys.exit(f"no benchmark named {', '.join(sorted(unknown))}: there are {', '.join(BENCHMARKS)}")
    for name in names or BENCHMARKS:
        BENCHMARKS[name]("--quick" in arguments)


main(sys.argv[1:])
