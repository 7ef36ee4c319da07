"""From process start to the agent card and to the first answer, and the memory it takes.

Meant for a base install (`make bench`): the SDK imports grpc and sqlalchemy wherever they are installed.
"""

from __future__ import annotations

import statistics
import time
from tempfile import TemporaryDirectory

from .process import RETINUE, started

REPETITIONS = 5


def main(quick: bool) -> None:
    from retinue_server.client import TaskClient

    cards, idle, firsts, warm, after = [list[float]() for _ in range(5)]
    repetitions = 1 if quick else REPETITIONS
    for _ in range(repetitions):
        with TemporaryDirectory() as folder, started([RETINUE, "serve", "--port"], folder) as server:
            cards.append(server.card)
            idle.append(server.megabytes())
            client = TaskClient(server.url)
            for times in (firsts, warm):
                began = time.perf_counter()
                client.send_task(message="I have a cat named Tom.", metadata={"user_id": "alice"})
                times.append(time.perf_counter() - began)
            after.append(server.megabytes())
    print(f"startup, median of {repetitions}")
    for what, figures, unit in (
        ("process start to card", cards, "s"),
        ("memory, idle", idle, "MB"),
        ("first answer, which loads model and embedder", firsts, "s"),
        ("second answer", warm, "s"),
        ("memory after them", after, "MB"),
    ):
        print(f"  {what:<46}{statistics.median(figures):8.2f} {unit}")
