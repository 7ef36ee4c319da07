"""What a task costs on the bare SDK, on ours, and on ours with memory: the same echo, the same load, side by side.

python -m benchmarks.server [--quick] [--adk PYTHON] [--before COMMAND]: with an interpreter that has google-adk and its extra
`a2a`, an agent of it is measured too, without memory. It is no dependency of ours, so it is not looked for. COMMAND is that of
another version of this server, which is measured without memory and compared round by round.

The servers run at once and take turns under load, round after round, so that what else the machine does meets all of
them. CPU time is what to judge by; rates and latencies also tell how busy the machine was. Nothing but 127.0.0.1.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import importlib.util
import math
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from retinue_memory import InvocationContext, Message
from retinue_memory.native.embedder import Recent, find_embedder
from retinue_memory.native.memory import NativeMemory

from .load import Burst, Figures, said, send
from .process import RETINUE, Server, started

SDK, ADK, BEFORE, OURS, REMEMBERING = "a2a-sdk", "google-adk", "before", "retinue", "with memory"
CLIENTS, MEMORIES, DELTAS = 32, 1000, 200
_ADK = 2.3, 2.9
"""What google-adk without memory is taken to cost at 1 and 32 clients, in tasks of the SDK, where it is not measured."""
_AT_MOST = 0.45, 0.18
"""The budget of a task at 1 and 32 clients, in tasks of the SDK."""
_AT_MOST_REMEMBERING = 1.75, 1.05
"""The budget of a task with memory at 1 and 32 clients, in tasks of google-adk without."""

_CONFIG = """\
database: sqlite:///bench.db
agents:
  echo: {default: true, model: echo, memory: MEMORY}
  deltas: {model: echo, settings: {chunks: 200}, memory: off}
  slow: {model: echo, settings: {delay: 0.2}, memory: off}
"""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured: rounds, and the tasks of each of a round's bursts."""

    rounds: int
    starts: int
    alone: int
    crowd: int
    streams: int
    slow: int

    @property
    def bursts(self) -> dict[str, Burst]:
        return {
            "alone": Burst(1, self.alone),
            "crowd": Burst(CLIENTS, self.crowd),
            "deltas": Burst(4, self.streams, "/agents/deltas/", streams=True, length=5 * DELTAS),
            "whole": Burst(4, self.streams, streams=True, length=5 * DELTAS),
            "slow": Burst(CLIENTS, self.slow, "/agents/slow/"),
        }


NORMAL = Size(rounds=5, starts=5, alone=200, crowd=800, streams=24, slow=224)
QUICK = Size(rounds=2, starts=1, alone=100, crowd=320, streams=12, slow=96)


@dataclass(slots=True)
class Row:
    """What was measured of one server."""

    cards: list[float] = field(default_factory=list[float])
    bursts: dict[str, list[Figures]] = field(default_factory=dict[str, list[Figures]])
    before: float = 0.0
    after: float = 0.0
    tasks: int = 0

    def of(self, burst: str) -> Figures:
        """The median of each figure over the rounds; not a number where this server was given no such burst."""
        found = [astuple(figures) for figures in self.bursts.get(burst, ())]
        return Figures(*map(statistics.median, zip(*found, strict=True))) if found else Figures(*[math.nan] * 4)

    @property
    def card(self) -> float:
        return statistics.median(self.cards) if self.cards else math.nan

    @property
    def delta(self) -> float:
        """CPU ms of a text delta: what a streamed answer in many costs more than the same in one."""
        if "deltas" not in self.bursts:
            return math.nan
        pairs = zip(self.bursts["deltas"], self.bursts["whole"], strict=True)
        return statistics.median((many.cpu - one.cpu) / (DELTAS - 1) for many, one in pairs)


def main(quick: bool, adk: str | None = None, before: str | None = None) -> None:
    size = QUICK if quick else NORMAL
    load = os.getloadavg()[0]
    with TemporaryDirectory() as folder:
        commands = {SDK: [sys.executable, str(Path(__file__).with_name("echo.py"))]}
        if adk is not None:
            commands[ADK] = [adk, str(Path(__file__).with_name("adk.py"))]
        if before is not None:
            commands[BEFORE] = _serve(Path(folder, "before"), memory="off", command=before)
        commands |= {
            OURS: _serve(Path(folder, "ours"), memory="off"),
            REMEMBERING: _serve(Path(folder, "remembering"), memory="default"),
        }
        rows = {name: Row() for name in commands}
        for _ in range(size.starts):
            for name in [name for name in commands if name != REMEMBERING]:
                with started(commands[name], folder) as server:
                    rows[name].cards.append(server.card)
        by_meaning = asyncio.run(_fill(Path(folder, "remembering", "bench.db")))
        with _all_started(commands, folder) as servers:
            for name, server in servers.items():
                rows[name].before = server.megabytes()
                _warm_up(name, server, rows[name])
            for _ in range(size.rounds):
                for key, burst in size.bursts.items():
                    for name, server in servers.items():
                        _measure(name, server, rows[name], key, burst)
            for name, server in servers.items():
                rows[name].after = server.megabytes()
    _head(size, load, by_meaning, adk)
    _figures(rows)
    _budgets(rows)
    if before is not None:
        _pairs(rows[BEFORE], rows[OURS])


# -- the servers -----------------------------------------------------------------------------------------------------------


def _serve(folder: Path, *, memory: str, command: str = RETINUE) -> list[str]:
    folder.mkdir()
    config = folder / "retinue.yaml"
    text = _CONFIG.replace("MEMORY", memory).replace("bench.db", f"{folder}/bench.db")
    config.write_text(text, encoding="utf-8")
    return [command, "serve", "--config", str(config), "--port"]


@contextmanager
def _all_started(commands: dict[str, list[str]], folder: str) -> Generator[dict[str, Server]]:
    folders = {OURS: "ours", BEFORE: "before", REMEMBERING: "remembering"}
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(started(command, Path(folder, folders.get(name, ""))))
            for name, command in commands.items()
        }


async def _fill(path: Path) -> bool:
    """Give each client's user memories, embedded once and the same for all; whether they can be found by meaning."""
    embedder = find_embedder()
    kept = Recent(embedder, max_readings=MEMORIES) if embedder is not None else None
    memory = NativeMemory(f"sqlite:///{path}", embedder=kept)
    for number in range(CLIENTS):
        user = f"user-{number}"
        told = [Message("user", said(-place - 1), id=f"{user}-{place}") for place in range(MEMORIES)]
        await memory.update(told, ctx=InvocationContext("before", user))
    await memory.aclose()
    return embedder is not None


def _warm_up(name: str, server: Server, row: Row) -> None:
    """Every path once, and every user's index loaded; not counted."""
    for burst in QUICK.bursts.values():
        _measure(name, server, row, "warm", burst)
    row.bursts.clear()


def _measure(name: str, server: Server, row: Row, key: str, burst: Burst) -> None:
    if name in (ADK, REMEMBERING) and (burst.streams or burst.path != "/"):
        return  # the one agent of google-adk echoes, and what ours do beside it is measured without memory
    if name == REMEMBERING:
        burst = Burst(burst.clients, burst.tasks, users=True, cold=key == "warm")
    row.bursts.setdefault(key, []).append(send(server, burst))
    row.tasks += burst.tasks


# -- what it says ----------------------------------------------------------------------------------------------------------


def _head(size: Size, load: float, by_meaning: bool, adk: str | None) -> None:
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("retinue", "a2a-sdk"))
    machine = f"Python {platform.python_version()}, {os.cpu_count()} cores"
    print(f"server: {versions}, {machine}; median of {size.rounds} rounds in turn")
    print(f"  load average {load:.1f} before, {os.getloadavg()[0]:.1f} after")
    print(f"  {SDK}: DefaultRequestHandler, InMemoryTaskStore; {OURS}: SQLite, synchronous FULL, memory off")
    found = "by words and meaning" if by_meaning else "by words alone: the embedder or its weights are not installed"
    print(f"  {REMEMBERING}: the native memory, {MEMORIES} memories for each of {CLIENTS} users, found {found}")
    print("  an echo answers with the question, so a turn embeds one text; a model's own words would be a second")
    if adk is None:
        print("  google-adk is not run: --adk names an interpreter that has it")
    else:
        print(f"  {ADK} {_version_of('google-adk', adk)}: to_a2a, services in memory, no memory used")
    extras = [name for name in ("grpc", "sqlalchemy") if importlib.util.find_spec(name)]
    if extras:
        print(f"  not a base install: a2a-sdk imports {' and '.join(extras)}, which costs time and memory at the start")


def _version_of(distribution: str, interpreter: str) -> str:
    ask = f"from importlib.metadata import version; print(version({distribution!r}))"
    return subprocess.run([interpreter, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()


def _figures(rows: dict[str, Row]) -> None:
    print(f"\n  {'':<44}" + "".join(f"{name:>13}" for name in rows))
    for burst, many in (("alone", "1 client"), ("crowd", f"{CLIENTS} clients")):
        figures = [row.of(burst) for row in rows.values()]
        _line(f"CPU ms a task, {many}", [one.cpu for one in figures], 2)
        _line(f"tasks a second, {many}", [one.rate for one in figures], 0)
        _line(f"ms to the answer, {many}: p50", [one.p50 for one in figures], 1)
        _line(f"ms to the answer, {many}: p99", [one.p99 for one in figures], 1)
    _line(f"CPU ms a text delta, {DELTAS} a task", [row.delta for row in rows.values()], 3)
    _line(f"tasks a second, 0.2 s model, {CLIENTS} clients", [row.of("slow").rate for row in rows.values()], 0)
    _line("s from process start to card", [row.card for row in rows.values()], 2)
    _line("MB before the first task", [row.before for row in rows.values()], 0)
    _line("MB after the last", [row.after for row in rows.values()], 0)
    _line("tasks between them", [row.tasks for row in rows.values()], 0)


def _line(what: str, figures: Sequence[float], places: int) -> None:
    shown = ("-" if math.isnan(figure) else f"{figure:,.{places}f}" for figure in figures)
    print(f"  {what:<44}" + "".join(f"{figure:>13}" for figure in shown))


def _budgets(rows: dict[str, Row]) -> None:
    sdk, adk, ours, remembering = rows[SDK], rows.get(ADK), rows[OURS], rows[REMEMBERING]
    print(f"\n  {'budget':<44}{SDK:>13}{'ours':>13}{'ratio':>9}  at most, at least")
    for place, (burst, many) in enumerate((("alone", "1 client"), ("crowd", f"{CLIENTS} clients"))):
        base = sdk.of(burst).cpu
        _budget(f"CPU ms a task, {many}", base, ours.of(burst).cpu, at_most=_AT_MOST[place], ratio=True)
        most = _AT_MOST_REMEMBERING[place] * (_ADK[place] if adk is None else adk.of(burst).cpu / base)
        _budget(f"CPU ms a task with memory, {many}*", base, remembering.of(burst).cpu, at_most=most, ratio=True)
    _budget(f"tasks a second, {CLIENTS} clients", sdk.of("crowd").rate, ours.of("crowd").rate, at_least=5, ratio=True)
    _budget("CPU ms a text delta", sdk.delta, ours.delta, at_most=0.04)
    _budget("tasks a second, 0.2 s model", sdk.of("slow").rate, ours.of("slow").rate, at_least=152)
    _budget("s from process start to card", sdk.card, ours.card, at_most=0.8)
    _budget("MB before the first task", sdk.before, ours.before, at_most=90)
    if adk is None:
        print(f"  * google-adk without a memory: elsewhere, {_ADK[0]:g} and {_ADK[1]:g} times the SDK")
    else:
        own, theirs = ([row.of(burst).cpu for burst in ("alone", "crowd")] for row in (remembering, adk))
        ratios = " and ".join(f"{a / b:.2f}" for a, b in zip(own, theirs, strict=True))
        print(f"  * ours with memory takes {ratios} of what {ADK} takes without, above")


def _pairs(before: Row, ours: Row) -> None:
    print(f"\n  {'CPU a task, of that before':<44}{'median':>13}{'from':>13}{'to':>9}  by round")
    for burst in ours.bursts:
        pairs = zip(ours.bursts[burst], before.bursts[burst], strict=True)
        ratios = sorted(one.cpu / other.cpu for one, other in pairs)
        print(f"  {burst:<44}{statistics.median(ratios):>13.2f}{ratios[0]:>13.2f}{ratios[-1]:>9.2f}")


def _budget(
    what: str, base: float, own: float, *, at_most: float = math.inf, at_least: float = 0.0, ratio: bool = False
) -> None:
    judged = own / base if ratio else own
    bound = f"{at_least or at_most:.3g}{' x' if ratio else ''}"
    met = "met" if at_least <= judged <= at_most else "not met"
    shown = "".join(f"{figure:>13,.0f}" if figure >= 100 else f"{figure:>13.3g}" for figure in (base, own))
    print(f"  {what:<44}{shown}{own / base:>9.2f}  {'>=' if at_least else '<='} {bound:<7}{met}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.server", description="What a task costs.")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--adk", metavar="PYTHON", help="an interpreter that has google-adk with its extra a2a")
    parser.add_argument("--before", metavar="COMMAND", help="the command of another version, to be compared with")
    return parser.parse_args()


if __name__ == "__main__":
    options = _options()
    main(options.quick, options.adk, options.before)
