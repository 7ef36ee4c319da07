"""The task store: rows of tasks, turns, journals and outboxes, and the operations on them."""
