-- Memory writes on their way.

-- name: insert_write
INSERT INTO memory_outbox (task_id, turn_id, memory, context, messages, due_at) VALUES (?, ?, ?, ?, ?, ?)
RETURNING id

-- name: due_writes
-- The writes of one scope are delivered in order: a later one waits while an earlier one waits for its retry.
SELECT id, task_id, tries, memory, context, messages FROM memory_outbox AS this
WHERE dead = 0 AND memory = :memory AND due_at <= :now AND NOT EXISTS (
    SELECT 1 FROM memory_outbox AS earlier
    WHERE earlier.dead = 0 AND earlier.memory = this.memory AND earlier.scope = this.scope
      AND earlier.id < this.id AND earlier.due_at > :now)
ORDER BY id LIMIT :limit

-- name: next_write
-- The earliest among the first writes of each scope; the others cannot go yet.
SELECT (
    SELECT due_at FROM memory_outbox AS this
    WHERE dead = 0 AND memory = ? AND NOT EXISTS (
        SELECT 1 FROM memory_outbox AS earlier
        WHERE earlier.dead = 0 AND earlier.memory = this.memory AND earlier.scope = this.scope AND earlier.id < this.id)
    ORDER BY due_at LIMIT 1)

-- name: unconfirmed_writes
SELECT memory, context, messages FROM memory_outbox WHERE dead = 0 ORDER BY id

-- name: delete_write
DELETE FROM memory_outbox WHERE id = ?

-- name: write_stored
-- Stored only when no write of the task is pending, and never over a failure.
UPDATE tasks SET memory = 'stored'
WHERE id = :task_id AND memory = 'pending' AND NOT EXISTS (SELECT 1 FROM memory_outbox WHERE task_id = :task_id)

-- name: retry_write
UPDATE memory_outbox SET tries = tries + 1, due_at = :due_at, problem = :problem WHERE id = :id

-- name: bury_write
-- Give up.
UPDATE memory_outbox SET tries = tries + 1, dead = 1, problem = :problem WHERE id = :id

-- name: write_buried
UPDATE tasks SET memory = 'failed' WHERE id = ?

-- name: failed_writes
SELECT task_id, tries, problem, memory, context, messages FROM memory_outbox WHERE dead = 1 ORDER BY id LIMIT ?

-- name: tasks_of_failed_writes
UPDATE tasks SET memory = 'pending' WHERE id IN (SELECT task_id FROM memory_outbox WHERE dead = 1 AND memory = ?)

-- name: retry_failed_writes
-- One try is kept, so that the worker asks the memory whether it has the write already.
UPDATE memory_outbox SET dead = 0, tries = 1, due_at = :now WHERE dead = 1 AND memory = :memory
RETURNING memory, context, messages
