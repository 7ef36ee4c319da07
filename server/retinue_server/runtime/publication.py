"""The publication of a turn's events: coalesced, applied to the task, numbered, and handed to subscribers and recorder."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from a2a.types import Message, Task, TaskArtifactUpdateEvent, TaskStatus, TaskStatusUpdateEvent

from .events import Event, Numbered, Snapshot
from .pieces import TextPieces
from .recorder import Recorder
from .subscribers import Subscriber
from .timer import CoalescingTimer


class Publication:
    """The events of one turn. The first one that subscribers get is the task as the turn finds it."""

    def __init__(
        self,
        snapshot: Snapshot,
        recorder: Recorder,
        timer: CoalescingTimer,
        publish: Callable[[Numbered[Event]], None],
        *,
        new_task: bool,
    ) -> None:
        """`timer` rings after the window in which text is held. `publish` is called with every event that changes the task."""
        self._snapshot = snapshot
        self._recorder = recorder
        self._timer = timer
        self._publish_to_task = publish
        self._new_task = new_task
        self._started = False
        self._pieces = TextPieces()
        self._subscribers: list[Subscriber] = []
        self._shown_status: TaskStatus | None = None
        """The committed status, while the one that replaces it is being committed."""

    @property
    def started(self) -> bool:
        """Whether something was published."""
        return self._started

    @property
    def task(self) -> Task:
        """The task itself, not a copy."""
        return self._snapshot.task

    def shown(self) -> Numbered[Task]:
        """A copy of the task as published: a state that ends or interrupts it is not shown before it is committed."""
        task, generation = self._snapshot.copy()
        if self._shown_status is None:
            return Numbered(task, generation)
        task.status.CopyFrom(self._shown_status)
        return Numbered(task, generation - 1)

    def subscribe(self, after: int) -> Subscriber:
        """Return a subscriber to the task and the events of this turn, without those up to the generation `after`."""
        subscriber = Subscriber(self._current, after=after)
        self._subscribers.append(subscriber)
        if self._started:
            subscriber.put(self.shown())
        return subscriber

    def continue_with(self, successor: Publication) -> None:
        """Hand the subscribers over to the turn that continues the task."""
        successor._subscribers += self._subscribers
        self._subscribers = []

    def announce(self, described: Task | None = None) -> None:
        """Publish the task as it was accepted, or as the executor describes it."""
        self._started = True
        if described is not None:
            self._snapshot.describe(described)
        if self._subscribers or self._recorder.pushes:
            task = self._snapshot.copy()
            if self._new_task:
                self._recorder.add_event(task.event)
            self._put(task)

    def publish(self, event: Task | TaskStatusUpdateEvent) -> None:
        """Apply and publish an event that neither ends nor interrupts the task."""
        self._apply(event)

    def publish_artifact(self, event: TaskArtifactUpdateEvent) -> None:
        """Apply and publish an artifact update, or hold it for a moment if it is one of many pieces of text."""
        now = asyncio.get_running_loop().time()
        piece: TaskArtifactUpdateEvent | None = event
        if self._pieces.continues(event):
            piece = self._pieces.add(event, now)
        else:
            self.publish_held()
        if piece is None:
            self._timer.ask(self.publish_held)
        else:
            self._apply(piece)
            self._pieces.published(piece, now)

    def publish_held(self) -> None:
        """Publish the text that is held, if any."""
        if (piece := self._pieces.take()) is not None:
            self._apply(piece)
            self._pieces.published(piece, asyncio.get_running_loop().time())

    def apply_uncommitted(self, event: Task | TaskStatusUpdateEvent) -> Task | TaskStatusUpdateEvent:
        """Apply an event that ends or interrupts the task. It is published by `publish_committed`."""
        shown = TaskStatus()
        shown.CopyFrom(self._snapshot.task.status)
        self._snapshot.apply(event)
        self._shown_status = shown
        return self._snapshot.copy().event if isinstance(event, Task) else event

    def publish_committed(self, event: Task | TaskStatusUpdateEvent | None, answer: Message | None = None) -> None:
        """Publish what a commit made durable: the latest status event, or a direct message to this turn's subscribers."""
        self._shown_status = None
        if event is not None:
            numbered = Numbered(event, self._snapshot.generation)
            self._put(numbered)
            self._publish_to_task(numbered)
        if answer is not None:
            self._put(Numbered(answer, self._snapshot.generation))

    def close(self) -> None:
        """End the subscribers' streams."""
        self._timer.forget(self.publish_held)
        for subscriber in self._subscribers:
            subscriber.close()

    def _apply(self, event: Task | TaskStatusUpdateEvent | TaskArtifactUpdateEvent) -> None:
        self._snapshot.apply(event)
        if isinstance(event, Task):
            event = self._snapshot.copy().event
        numbered = Numbered(event, self._snapshot.generation)
        self._recorder.add_event(event)
        self._put(numbered)
        self._publish_to_task(numbered)

    def _put(self, numbered: Numbered[Event]) -> None:
        for subscriber in self._subscribers:
            subscriber.put(numbered)

    async def _current(self) -> Numbered[Task]:
        return self.shown()
