-- Reading tasks, one, a page or a context, and purging old ones.

-- name: task
SELECT snapshot, memory, generation FROM tasks
WHERE id = :task_id AND tenant = :tenant AND agent = :agent AND hidden = 0
  AND (:visible_owner IS NULL OR owner = :visible_owner)

-- name: tasks_of_owner
SELECT snapshot, memory, generation FROM tasks
WHERE tenant = :tenant AND agent = :agent AND owner = :visible_owner AND hidden = 0
  AND status_at > :after AND (status_at, id) < (:before_at, :before_id) AND (:state = 0 OR state = :state)
ORDER BY status_at DESC, id DESC LIMIT :size

-- name: tasks_of_agent
SELECT snapshot, memory, generation FROM tasks
WHERE tenant = :tenant AND agent = :agent AND hidden = 0
  AND status_at > :after AND (status_at, id) < (:before_at, :before_id) AND (:state = 0 OR state = :state)
ORDER BY status_at DESC, id DESC LIMIT :size

-- name: tasks_of_owner_by_state
-- These states have indexes of their own; the indexes' condition must be repeated.
SELECT snapshot, memory, generation FROM tasks INDEXED BY tasks_of_owner_by_state
WHERE tenant = :tenant AND agent = :agent AND owner = :visible_owner AND hidden = 0
  AND state NOT IN (1, 3) AND state = :state AND status_at > :after AND (status_at, id) < (:before_at, :before_id)
ORDER BY status_at DESC, id DESC LIMIT :size

-- name: tasks_of_agent_by_state
SELECT snapshot, memory, generation FROM tasks INDEXED BY tasks_of_agent_by_state
WHERE tenant = :tenant AND agent = :agent AND hidden = 0
  AND state NOT IN (1, 3) AND state = :state AND status_at > :after AND (status_at, id) < (:before_at, :before_id)
ORDER BY status_at DESC, id DESC LIMIT :size

-- name: tasks_of_context
SELECT snapshot, memory, generation FROM tasks INDEXED BY tasks_of_context
WHERE context_id = :context_id AND tenant = :tenant AND agent = :agent
  AND (:visible_owner IS NULL OR owner = :visible_owner) AND hidden = 0
  AND status_at > :after AND (status_at, id) < (:before_at, :before_id) AND (:state = 0 OR state = :state)
ORDER BY status_at DESC, id DESC LIMIT :size

-- name: total_of_owner
-- From the counters that triggers keep: counting 100,000 rows takes longer than reading a page of them.
SELECT COALESCE(sum(tasks), 0) FROM task_counts
WHERE tenant = :tenant AND agent = :agent AND owner = :visible_owner AND (:state = 0 OR state = :state)

-- name: total_of_agent
SELECT COALESCE(sum(tasks), 0) FROM task_counts
WHERE tenant = :tenant AND agent = :agent AND (:state = 0 OR state = :state)

-- name: count_of_owner
-- Counted row by row, for lists that the counters cannot answer.
SELECT count(*) FROM tasks
WHERE tenant = :tenant AND agent = :agent AND owner = :visible_owner AND hidden = 0 AND status_at > :after
  AND (:state = 0 OR state = :state)

-- name: count_of_agent
SELECT count(*) FROM tasks
WHERE tenant = :tenant AND agent = :agent AND hidden = 0
  AND status_at > :after AND (:state = 0 OR state = :state)

-- name: count_of_owner_by_state
SELECT count(*) FROM tasks INDEXED BY tasks_of_owner_by_state
WHERE tenant = :tenant AND agent = :agent AND owner = :visible_owner AND hidden = 0
  AND state NOT IN (1, 3) AND state = :state AND status_at > :after

-- name: count_of_agent_by_state
SELECT count(*) FROM tasks INDEXED BY tasks_of_agent_by_state
WHERE tenant = :tenant AND agent = :agent AND hidden = 0
  AND state NOT IN (1, 3) AND state = :state AND status_at > :after

-- name: count_of_context
SELECT count(*) FROM tasks INDEXED BY tasks_of_context
WHERE context_id = :context_id AND tenant = :tenant AND agent = :agent
  AND (:visible_owner IS NULL OR owner = :visible_owner) AND hidden = 0
  AND status_at > :after AND (:state = 0 OR state = :state)

-- name: context
-- The tasks of a context up to and including the turn's own, newest first.
SELECT snapshot, memory FROM tasks
WHERE context_id = :context_id AND agent = :agent AND tenant = :tenant AND owner = :owner
  AND place <= (SELECT place FROM tasks WHERE id = :task_id)
ORDER BY place DESC LIMIT :limit

-- name: purgeable
-- The visible tasks of each agent, from the oldest, then the hidden ones; none that is still worked on or delivered.
SELECT id FROM (
    SELECT tasks.id FROM (SELECT DISTINCT tenant, agent FROM task_counts) AS served
    CROSS JOIN tasks ON tasks.tenant = served.tenant AND tasks.agent = served.agent
    WHERE hidden = 0 AND status_at < :before AND state IN (3, 4, 5, 7)
    UNION ALL SELECT id FROM tasks WHERE hidden = 1 AND status_at < :before
) AS ended
WHERE NOT EXISTS (SELECT 1 FROM turns JOIN tasks ON tasks.id = turns.task_id AND tasks.context_id = turns.context_id
                  WHERE tasks.id = ended.id AND turns.state < 2)
  AND NOT EXISTS (SELECT 1 FROM memory_outbox WHERE memory_outbox.task_id = ended.id AND dead = 0)
  AND NOT EXISTS (SELECT 1 FROM push_outbox WHERE push_outbox.task_id = ended.id AND dead = 0)
LIMIT :limit

-- name: purge_steps
DELETE FROM steps WHERE turn_id IN (
    SELECT place FROM tasks WHERE id = ?1 UNION ALL SELECT id FROM turns WHERE task_id = ?1 AND follows = 1)

-- name: purge_turns
DELETE FROM turns WHERE id IN (
    SELECT place FROM tasks WHERE id = ?1 UNION ALL SELECT id FROM turns WHERE task_id = ?1 AND follows = 1)

-- name: purge_memory_outbox
DELETE FROM memory_outbox WHERE task_id = ?

-- name: purge_push_outbox
DELETE FROM push_outbox WHERE task_id = ?

-- name: purge_push_configs
DELETE FROM push_configs WHERE task_id = ?

-- name: purge_tasks
DELETE FROM tasks WHERE id = ?
