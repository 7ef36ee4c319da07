"""Servers as processes of their own: each on a free port of this machine, timed, weighed, and ended by its id."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

RETINUE = str(Path(sys.executable).parent / "retinue")


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs. `card`: seconds from its start until it served its card."""

    pid: int
    port: int
    card: float

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def megabytes(self) -> float:
        """Its resident memory."""
        return int(_ps("rss", self.pid)) / 1024

    def cpu_seconds(self) -> float:
        """What it has computed so far, in user and system mode, with all its threads, those that ended too."""
        if sys.platform == "linux":
            return time.clock_gettime(~self.pid << 3 | 2)  # the clock that clock_getcpuclockid(3) names
        seconds = 0.0
        for part in _ps("time", self.pid).replace("-", ":").split(":"):
            seconds = 60 * seconds + float(part)
        return seconds


@contextmanager
def started(command: Sequence[str], folder: Path | str) -> Generator[Server]:
    """Run `command`, with a free port as its last argument, in `folder` until the block ends."""
    log = Path(folder, "server.log")
    began = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen([*command, str(port := free_port())], cwd=folder, stdout=output, stderr=output)
    try:
        while not _answers(f"http://127.0.0.1:{port}/.well-known/agent-card.json"):
            if process.poll() is not None or time.perf_counter() > began + 60:
                sys.exit(f"{' '.join(command)} did not come up:\n{log.read_text(encoding='utf-8', errors='replace')}")
            time.sleep(0.005)
        yield Server(process.pid, port, time.perf_counter() - began)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False


def _ps(what: str, pid: int) -> str:
    listing = subprocess.run(["ps", "-o", f"{what}=", "-p", str(pid)], capture_output=True, text=True, check=True)
    return listing.stdout.strip()
