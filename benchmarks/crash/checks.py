"""What the database must hold: after every kill, read from a copy, and at the end."""

from __future__ import annotations

import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from a2a.types import StreamResponse, Task, TaskState
from google.protobuf.json_format import MessageToDict

from .ledger import MAY_FAIL_FOR, TERMINAL, JSONObject, Ledger, View, artifacts, reason_of, text_of

Step = tuple[str, str]
"""(message id, key in the journal)"""


def copied(database: Path, folder: Path) -> Path:
    """The files as the kill left them: opening them would already repair them."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for file in database.parent.glob(f"{database.name}*"):
        if file.suffix not in (".lock", ".db-shm"):
            shutil.copy(file, folder)
    return folder / database.name


_HEADS = """
SELECT message_id, (SELECT count(*) FROM steps WHERE turn_id = turns.id) FROM turns
WHERE id IN (SELECT min(id) FROM turns WHERE state < 2 GROUP BY owner, context_id)
"""


class Wreck:
    """What was learned from the database after each kill."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.committed_by: dict[Step, int] = {}
        """The first generation after whose kill a step was found committed."""
        self.at_work: dict[str, tuple[int, int]] = {}
        """By message whose turn kills found at the head of its serial queue: its committed steps, and how many kills since."""
        self._ended: dict[str, tuple[int, int]] = {}

    def look(self, database: Path, generation: int, acknowledged: Iterable[str]) -> None:
        with closing(sqlite3.connect(database)) as db:
            (verdict,) = db.execute("PRAGMA integrity_check").fetchone()
            if verdict != "ok":
                self._ledger.violation(f"after kill {generation}: {verdict}")
            tables = {name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
            if {"tasks", "turns", "steps"} <= tables:
                self._look(db, generation, acknowledged)

    def _look(self, db: sqlite3.Connection, generation: int, acknowledged: Iterable[str]) -> None:
        states = {id_: (state, at) for id_, state, at in db.execute("SELECT id, state, status_at FROM tasks")}
        for task_id in acknowledged:
            if task_id not in states:
                self._ledger.violation(f"after kill {generation}: acknowledged task {task_id} is missing")
        for task_id, end in self._ended.items():
            if states.get(task_id) != end:
                self._ledger.violation(f"after kill {generation}: task {task_id} ended {end}, is {states.get(task_id)}")
        self._ended = {id_: end for id_, end in states.items() if TaskState.Name(end[0]) in TERMINAL}
        for task_id, state in self._ledger.ended.items():
            if task_id not in self._ended:
                self._ledger.violation(f"after kill {generation}: a client saw {task_id} end {state}, it has not")
        for step in committed_steps(db):
            self.committed_by.setdefault(step, generation)
        for message_id, steps in db.execute(_HEADS):
            before, kills = self.at_work.get(message_id, (steps, 0))
            self.at_work[message_id] = (steps, kills + 1 if steps == before else 1)


def committed_steps(db: sqlite3.Connection) -> set[Step]:
    found = db.execute(
        "SELECT message_id, key FROM steps JOIN turns ON turns.id = steps.turn_id WHERE result IS NOT NULL"
    )
    return {(message_id, key) for message_id, key in found}


def repeated(calls: Iterable[tuple[int, str, str]], wreck: Wreck, ledger: Ledger) -> tuple[int, int]:
    """(calls that were made again, steps that were in flight at the kills). Notes each repeat that must not be."""
    begun: dict[Step, Counter[int]] = {}
    for generation, message_id, key in calls:
        begun.setdefault((message_id, key), Counter())[generation] += 1
        for needed in ledger.sent[message_id].order.before(key):
            if wreck.committed_by.get((message_id, needed), generation + 1) > generation:
                ledger.violation(f"{message_id}: {key} began in {generation}, before {needed} was committed")
    again = in_flight = 0
    for step, by_generation in begun.items():
        again += by_generation.total() - 1
        committed = wreck.committed_by.get(step)
        in_flight += sum(1 for generation in by_generation if committed is None or generation < committed)
        if any(count > 1 for count in by_generation.values()):
            ledger.violation(f"{step}: made twice by one process")
        if committed is not None and max(by_generation) > committed:
            ledger.violation(f"{step}: committed by {committed}, made again by {max(by_generation)}")
    return again, in_flight


def never_twice(calls: Iterable[tuple[int, str, str]], db: sqlite3.Connection, ledger: Ledger) -> int:
    """How many tasks ended with "outcome unknown": each call of the tool that must not be repeated was made once, or not."""
    places = {"charge": ("tool/1/0",), "both": ("tool/1/1",)}
    made = Counter((message_id, key) for _, message_id, key in calls)
    for sent in ledger.sent.values():
        for key in places.get(sent.order.kind, ()):
            if made[sent.order.id, key] > 1:
                ledger.violation(
                    f"{sent.order.id}: {key} must not be repeated, and was made {made[sent.order.id, key]} times"
                )
    unknown = 0
    rows = db.execute("SELECT message_id, task_id FROM steps JOIN turns ON turns.id = turn_id WHERE result IS NULL")
    for message_id, task_id in rows:
        task = _task(db, task_id)
        reason = reason_of(MessageToDict(task.status))
        unknown += reason.startswith(MAY_FAIL_FOR[0])
        allowed = TaskState.TASK_STATE_CANCELED, TaskState.TASK_STATE_FAILED
        if task.status.state not in allowed:
            ledger.violation(f"{message_id}: a call's outcome is unknown, its task is {task.status.state}: {reason}")
    return unknown


def ends(db: sqlite3.Connection, wreck: Wreck, ledger: Ledger) -> Counter[str]:
    """How the tasks ended; none may be left, and none may have failed for nothing."""
    found: Counter[str] = Counter()
    for task_id in sorted(ledger.acknowledged):
        task = _task(db, task_id)
        state, reason = TaskState.Name(task.status.state), reason_of(MessageToDict(task.status))
        found[state.removeprefix("TASK_STATE_").lower()] += 1
        if state not in TERMINAL and state != "TASK_STATE_INPUT_REQUIRED":
            ledger.violation(f"task {task_id} is stuck: {state}")
        if state == "TASK_STATE_FAILED":
            turns = db.execute("SELECT message_id FROM turns WHERE task_id = ?", (task_id,)).fetchall()
            kills = max(wreck.at_work.get(message_id, (0, 0))[1] for (message_id,) in turns)
            if reason.startswith(MAY_FAIL_FOR[1]) and kills < 3:
                ledger.violation(f"task {task_id} failed after {kills} kills: {reason}")
    for message_id, task_id in db.execute("SELECT message_id, task_id FROM turns WHERE state < 2"):
        ledger.violation(f"{message_id}: its turn is still open, its task {task_id} is {_task(db, task_id).status}")
    return found


def memories(db: sqlite3.Connection, ledger: Ledger) -> int:
    """How many messages are remembered: of every turn that was answered, both, once, for its user."""
    (owed,) = db.execute("SELECT count(*) FROM memory_outbox").fetchone()
    if owed:
        ledger.violation(f"{owed} memory writes are still owed")
    rows = db.execute(
        "SELECT s.owner_id, s.message_id, m.content FROM memory_sources s JOIN memories m ON m.seq = s.memory_seq"
    ).fetchall()
    contents = Counter((owner, content) for owner, _, content in rows)
    for (owner, content), count in contents.items():
        if count > 1:
            ledger.violation(f"{owner} remembers {count} times: {content!r}")
    stored = {message_id: (owner, content) for owner, message_id, content in rows}
    may, must = dict[str, tuple[str, str]](), set[str]()
    committed = committed_steps(db)
    for message_id, task_id in db.execute("SELECT message_id, task_id FROM turns").fetchall():
        sent = ledger.sent[message_id]
        if sent.order.kind == "ask":  # remembered with the answer that its task ended with
            may[message_id] = (sent.user, sent.order.text)
            if _task(db, task_id).status.state == TaskState.TASK_STATE_COMPLETED:
                must.add(message_id)
        answered = sent.order.kind != "ask" and (message_id, sent.order.last) in committed
        if answered:
            answer_id = f"{task_id}/{message_id}/answer"
            may |= {message_id: (sent.user, sent.order.text), answer_id: (sent.user, sent.order.answer)}
            if _task(db, task_id).status.state == TaskState.TASK_STATE_COMPLETED:
                must |= {message_id, answer_id}
    ledger.violations += [f"memory of {missing} is missing" for missing in sorted(must - stored.keys())]
    ledger.violations += [
        f"memory of {id_}: is {value}, should be {may.get(id_)}"
        for id_, value in stored.items()
        if may.get(id_) != value
    ]
    return len(stored)


_PUSH_LOG = """
CREATE TABLE pushed (id INTEGER PRIMARY KEY, config_id TEXT NOT NULL, payload BLOB NOT NULL);
CREATE TRIGGER push_is_logged AFTER INSERT ON push_outbox BEGIN
    INSERT INTO pushed (config_id, payload) VALUES (new.config_id, new.payload);
END;
"""


def log_pushes(database: Path) -> None:
    """Keep every push that is committed: its row in the outbox goes with its delivery."""
    with closing(sqlite3.connect(database)) as db:
        db.executescript(_PUSH_LOG)


def pushes(db: sqlite3.Connection, arrived: dict[str, list[JSONObject]], ledger: Ledger) -> tuple[int, int]:
    """(deliveries, of these repeated ones): each config's pushes arrive, each at least once, in their order; those of a config
    that came with its task add up to the task."""
    (pending,) = db.execute("SELECT count(*) FROM push_outbox").fetchone()
    if pending:
        ledger.violation(f"{pending} pushes are still pending")
    configs = db.execute("SELECT task_id, id FROM push_configs").fetchall()
    total = sum(map(len, arrived.values()))
    different = 0
    for task_id, config in configs:
        got, log = without_repeats(arrived.get(config, [])), without_repeats(_pushed(db, config))
        different += len(got)
        if not got or got != log:
            ledger.violation(f"push {config}: {len(got)} arrived of {len(log)} events: {_brief(got)} of {_brief(log)}")
        if ledger.sent[config].names is None:
            view, task = View(ledger, f"push {config}", task_id), MessageToDict(_task(db, task_id))
            for event in got:
                view.apply(event)
            texts = {artifact["artifactId"]: text_of(artifact) for artifact in artifacts(task)}
            if (view.state, view.texts) != (task["status"]["state"], texts):
                ledger.violation(f"push {config}: its events add up to {view.state} {view.texts}, not to the task")
    return total, total - different


def without_repeats(events: list[JSONObject]) -> list[JSONObject]:
    """Without those that equal the one before them: a delivery whose answer was lost comes again before the next."""
    return [event for place, event in enumerate(events) if place == 0 or event != events[place - 1]]


def _pushed(db: sqlite3.Connection, config: str) -> list[JSONObject]:
    rows = db.execute("SELECT payload FROM pushed WHERE config_id = ? ORDER BY id", (config,))
    return [MessageToDict(StreamResponse.FromString(payload)) for (payload,) in rows]


def _task(db: sqlite3.Connection, task_id: str) -> Task:
    row = db.execute("SELECT snapshot FROM tasks WHERE id = ?", (task_id,)).fetchone()
    return Task.FromString(row[0]) if row else Task()


def _brief(events: list[JSONObject]) -> list[str]:
    return [
        value["status"]["state"].removeprefix("TASK_STATE_") if "status" in value else kind
        for event in events
        for kind, value in event.items()
    ]
