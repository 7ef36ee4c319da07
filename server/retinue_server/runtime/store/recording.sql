-- Writing what a turn did, and the end of a task without a running turn.

-- name: mark_turn
-- No effect if another attempt owns the turn, or if it is done.
UPDATE turns SET state = :state WHERE id = :id AND attempt = :attempt AND state < 2

-- name: record_task
-- Every reason to refuse is a condition: the attempt is stale, the task has ended, or it would complete although another
-- message waits for it.
UPDATE tasks SET state = :state, status_at = :status_at, snapshot = :snapshot, generation = :generation,
                 hidden = :hidden, memory = COALESCE(:memory, memory)
WHERE id = :task_id AND state NOT IN (3, 4, 5, 7)
  AND EXISTS (SELECT 1 FROM turns WHERE id = :id AND attempt = :attempt AND state < 2)
  AND NOT (:state = 3 AND EXISTS (
      SELECT 1 FROM turns
      WHERE context_id = tasks.context_id AND task_id = tasks.id AND id <> :id AND state < 2))

-- name: record_turn
-- A committed step proves that the turn makes progress, so it clears the turn's crashes.
UPDATE turns SET state = :turn_state, answer = :answer, crashes = CASE WHEN :stepped THEN 0 ELSE crashes END
WHERE id = :id

-- name: obstacles
-- Why `record_task` changed nothing: whether the attempt is current, and whether another message waits for the task.
SELECT EXISTS (SELECT 1 FROM turns WHERE id = :id AND attempt = :attempt AND state < 2), EXISTS (
    SELECT 1 FROM turns JOIN tasks ON tasks.id = turns.task_id AND tasks.context_id = turns.context_id
    WHERE tasks.id = :task_id AND turns.id <> :id AND turns.state < 2)

-- name: record_step
-- A step that must not be repeated is recorded with NULL before its call, and again with the result.
INSERT INTO steps (turn_id, key, result) VALUES (?, ?, ?)
ON CONFLICT (turn_id, key) DO UPDATE SET result = excluded.result

-- name: end_task
-- No effect unless the task still has the status that the caller found.
UPDATE tasks SET state = :state, status_at = :status_at, snapshot = :snapshot, memory = COALESCE(:memory, memory),
                 generation = generation + 1
WHERE id = :task_id AND tenant = :tenant AND agent = :agent AND (:visible_owner IS NULL OR owner = :visible_owner)
  AND state = :found AND status_at = :found_at
RETURNING place
