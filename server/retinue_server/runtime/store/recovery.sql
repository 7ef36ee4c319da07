-- Resuming turns: after a crash, or after they waited.

-- name: drop_turns_of_ended_tasks
-- A message that waited for a task which then ended is not run.
UPDATE turns SET state = 2
WHERE state < 2 AND EXISTS (SELECT 1 FROM tasks WHERE tasks.id = turns.task_id AND tasks.state IN (3, 4, 5, 7))

-- name: close_turns_that_asked
-- The question of such a turn is stored: it is done, although its executor had not returned.
UPDATE turns SET state = 2 WHERE state = -1

-- name: raise_attempts
-- All wait until each is marked as running again: a turn that had not started is not to blame for the next crash.
UPDATE turns SET attempt = attempt + 1, crashes = crashes + (state = 1), state = 0 WHERE state < 2

-- name: open_turns
-- The "+" makes SQLite sort the few open turns instead of reading all turns in order.
SELECT turns.*, tasks.snapshot, tasks.memory, tasks.generation,
       EXISTS (SELECT 1 FROM push_configs WHERE task_id = turns.task_id) AS pushes
FROM turns JOIN tasks ON tasks.id = turns.task_id
WHERE turns.state < 2 ORDER BY +turns.id

-- name: reload
SELECT snapshot, memory, generation FROM tasks WHERE id = :task_id AND owner = :owner

-- name: steps_of_turn
SELECT key, result FROM steps WHERE turn_id = ?
