"""From process start to the agent card and to the first answer, and the memory it takes.

Meant for a base install (`make bench`): the SDK imports grpc and sqlalchemy wherever they are installed.
"""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

RECOLLECT = Path(sys.executable).parent / "recollect"
REPETITIONS = 5


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def megabytes(pid: int) -> float:
    """Resident memory of a process."""
    listing = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True)
    return int(listing.stdout) / 1024


@contextmanager
def server(folder: str) -> Generator[tuple[subprocess.Popen[bytes], str, float]]:
    """A server on the built-in config, as (process, address, seconds until it served its card)."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    began = time.perf_counter()
    command = [str(RECOLLECT), "serve", "--port", str(port)]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not answers(f"{url}/.well-known/agent-card.json"):
            if process.poll() is not None or time.perf_counter() > began + 60:
                sys.exit("recollect serve did not come up: run it by hand to see why")
            time.sleep(0.005)
        yield process, url, time.perf_counter() - began
    finally:
        process.terminate()
        process.wait(30)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False


def main() -> None:
    from recollect_server.client import TaskClient

    cards, idle, firsts, warm, after = [list[float]() for _ in range(5)]
    for _ in range(REPETITIONS):
        with TemporaryDirectory() as folder, server(folder) as (process, url, card):
            cards.append(card)
            idle.append(megabytes(process.pid))
            client = TaskClient(url)
            for times in (firsts, warm):
                began = time.perf_counter()
                client.send_task(message="I have a cat named Tom.", metadata={"user_id": "alice"})
                times.append(time.perf_counter() - began)
            after.append(megabytes(process.pid))
    print(f"startup, median of {REPETITIONS}")
    for what, figures, unit in (
        ("process start to card", cards, "s"),
        ("memory, idle", idle, "MB"),
        ("first answer, which loads model and embedder", firsts, "s"),
        ("second answer", warm, "s"),
        ("memory after them", after, "MB"),
    ):
        print(f"  {what:<46}{statistics.median(figures):8.2f} {unit}")
