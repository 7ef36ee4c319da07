"""PageToken: where one page of ListTasks ended."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Self

from a2a.types import Task
from a2a.utils.errors import InvalidParamsError

_MAX_LENGTH = 512


@dataclass(frozen=True, slots=True)
class PageToken:
    """The last task of a page, and the number of tasks when the first page was read."""

    at_us: int
    """When the task's status was set: microseconds since the epoch."""
    task_id: str
    total: int

    @classmethod
    def after(cls, task: Task, total: int) -> Self:
        return cls(task.status.timestamp.ToMicroseconds(), task.id, total)

    def encode(self) -> str:
        values = [self.at_us, self.task_id, self.total]
        return base64.urlsafe_b64encode(json.dumps(values, separators=(",", ":")).encode()).decode()

    @classmethod
    def decode(cls, token: str) -> Self | None:
        """Returns None for the empty token, which asks for the first page. Raises InvalidParamsError."""
        if not token:
            return None
        try:
            if len(token) > _MAX_LENGTH:
                raise ValueError("too long")
            at_us, task_id, total = json.loads(base64.b64decode(token, altchars=b"-_", validate=True))
            if not (type(at_us) is int and isinstance(task_id, str) and type(total) is int):
                raise ValueError("a value is of another type")
            if abs(at_us) > 2**62 or not 0 <= total < 2**31 or not task_id.isascii():
                raise ValueError("a value is out of range")
        except (ValueError, TypeError, RecursionError) as error:
            raise InvalidParamsError("pageToken: this server did not issue it") from error
        return cls(at_us, task_id, total)
