-- name: turn_of_message
SELECT id, task_id, digest, answer FROM turns
WHERE owner = :owner AND message_id = :message_id AND agent = :agent AND tenant = :tenant

-- name: task_for_turn
-- `reach` NULL: the caller may act for every owner of the tenant.
SELECT owner, context_id, state, snapshot, memory, seq,
       EXISTS (SELECT 1 FROM push_configs WHERE task_id = tasks.id) AS pushes
FROM tasks
WHERE id = :task_id AND tenant = :tenant AND agent = :agent AND (:reach IS NULL OR owner = :reach)

-- name: owners_of_message
SELECT owner FROM turns
WHERE message_id = :message_id AND context_id = :context_id AND agent = :agent AND tenant = :tenant
  AND (:reach IS NULL OR owner = :reach)
LIMIT 2

-- name: owners_of_context
SELECT DISTINCT owner FROM tasks
WHERE context_id = :context_id AND agent = :agent AND tenant = :tenant AND (:reach IS NULL OR owner = :reach)
LIMIT 2

-- name: context_is_known
SELECT 1 FROM tasks
WHERE context_id = :context_id AND agent = :agent AND tenant = :tenant AND owner = :owner
LIMIT 1

-- name: insert_task
INSERT INTO tasks (place, id, agent, tenant, owner, context_id, state, status_at, created_at, snapshot, seq)
VALUES (:place, :task_id, :agent, :tenant, :owner, :context_id, :state, :now, :now, :snapshot, 1)

-- name: insert_turn
-- It runs at once, or waits behind another of its lane. Its id is above every place that is taken: restored tasks have one
-- without a turn.
INSERT INTO turns (id, task_id, agent, tenant, owner, context_id, message_id, digest, request, extensions, follows, state)
VALUES (
    1 + max(COALESCE((SELECT max(id) FROM turns), 0), COALESCE((SELECT max(place) FROM tasks), 0)),
    :task_id, :agent, :tenant, :owner, :context_id, :message_id, :digest, :request, :extensions, :follows, NOT EXISTS (
        SELECT 1 FROM turns
        WHERE context_id = :context_id AND owner = :owner AND agent = :agent AND tenant = :tenant AND state < 2))
RETURNING id

-- name: mark_turn
UPDATE turns SET state = :state WHERE id = :id AND attempt = :attempt AND state < 2

-- name: record_task
-- Everything that may stand against it is a condition: the fence (an attempt that was overtaken changes nothing), a task that
-- has ended, and another message for a task that would be completed.
UPDATE tasks SET state = :state, status_at = :status_at, snapshot = :snapshot, seq = :seq, hidden = :hidden,
                 memory = COALESCE(:memory, memory)
WHERE id = :task_id AND state NOT IN (3, 4, 5, 7)
  AND EXISTS (SELECT 1 FROM turns WHERE id = :id AND attempt = :attempt AND state < 2)
  AND NOT (:state = 3 AND EXISTS (
      SELECT 1 FROM turns
      WHERE context_id = tasks.context_id AND task_id = tasks.id AND id <> :id AND state < 2))

-- name: record_turn
-- A committed step proves that the turn gets on.
UPDATE turns SET state = :turn_state, answer = :answer, crashes = CASE WHEN :stepped THEN 0 ELSE crashes END WHERE id = :id

-- name: obstacles
-- Why a task was not recorded: whether the turn is still this attempt's, and whether another message waits.
SELECT EXISTS (SELECT 1 FROM turns WHERE id = :id AND attempt = :attempt AND state < 2), EXISTS (
    SELECT 1 FROM turns JOIN tasks ON tasks.id = turns.task_id AND tasks.context_id = turns.context_id
    WHERE tasks.id = :task_id AND turns.id <> :id AND turns.state < 2)

-- name: record_step
INSERT INTO steps (turn_id, key, result) VALUES (?, ?, ?)
ON CONFLICT (turn_id, key) DO UPDATE SET result = excluded.result

-- name: record_write
INSERT INTO memory_outbox (task_id, turn_id, memory, context, messages, due_at) VALUES (?, ?, ?, ?, ?, ?)
RETURNING id

-- name: record_push
INSERT INTO push_outbox (task_id, config_id, payload, due_at)
SELECT task_id, id, :payload, :now FROM push_configs WHERE task_id = :task_id ORDER BY id

-- name: drop_turns_of_ended_tasks
UPDATE turns SET state = 2
WHERE state < 2 AND EXISTS (SELECT 1 FROM tasks WHERE tasks.id = turns.task_id AND tasks.state IN (3, 4, 5, 7))

-- name: raise_attempts
-- They wait, until each is marked as running again: who had not begun is not to blame for the next crash.
UPDATE turns SET attempt = attempt + 1, crashes = crashes + (state = 1), state = 0 WHERE state < 2

-- name: close_turns_that_asked
-- What a turn asked is stored: it is over, although its executor had not returned.
UPDATE turns SET state = 2 WHERE state = -1

-- name: open_turns
-- "+" has SQLite sort the few that are open rather than read all in order.
SELECT turns.*, tasks.snapshot, tasks.memory, tasks.seq,
       EXISTS (SELECT 1 FROM push_configs WHERE task_id = turns.task_id) AS pushes
FROM turns JOIN tasks ON tasks.id = turns.task_id
WHERE turns.state < 2 ORDER BY +turns.id

-- name: turn_by_id
SELECT turns.*, tasks.snapshot, tasks.memory, tasks.seq,
       EXISTS (SELECT 1 FROM push_configs WHERE task_id = turns.task_id) AS pushes
FROM turns JOIN tasks ON tasks.id = turns.task_id
WHERE turns.id = ?

-- name: steps_of_turn
SELECT key, result FROM steps WHERE turn_id = ?

-- name: task
SELECT snapshot, memory, seq FROM tasks
WHERE id = :task_id AND tenant = :tenant AND agent = :agent AND (:reach IS NULL OR owner = :reach) AND hidden = 0

-- name: reload
SELECT snapshot, memory, seq FROM tasks WHERE id = :task_id AND owner = :owner

-- name: end_task
UPDATE tasks SET state = :state, status_at = :status_at, snapshot = :snapshot, memory = COALESCE(:memory, memory),
    seq = seq + 1
WHERE id = :task_id AND tenant = :tenant AND agent = :agent AND (:reach IS NULL OR owner = :reach)
  AND state = :found AND status_at = :found_at
RETURNING place

-- name: tasks_of_owner
SELECT snapshot, memory, seq FROM tasks
WHERE tenant = :tenant AND agent = :agent AND owner = :reach AND hidden = 0
  AND status_at > :after AND (status_at, id) < (:before_at, :before_id) AND (:state = 0 OR state = :state)
ORDER BY status_at DESC, id DESC LIMIT :size

-- name: tasks_of_agent
SELECT snapshot, memory, seq FROM tasks
WHERE tenant = :tenant AND agent = :agent AND hidden = 0
  AND status_at > :after AND (status_at, id) < (:before_at, :before_id) AND (:state = 0 OR state = :state)
ORDER BY status_at DESC, id DESC LIMIT :size

-- name: tasks_of_owner_by_state
-- For these states there are indexes; their condition has to be said as it is there.
SELECT snapshot, memory, seq FROM tasks INDEXED BY tasks_of_owner_by_state
WHERE tenant = :tenant AND agent = :agent AND owner = :reach AND hidden = 0 AND state NOT IN (1, 3) AND state = :state
  AND status_at > :after AND (status_at, id) < (:before_at, :before_id)
ORDER BY status_at DESC, id DESC LIMIT :size

-- name: tasks_of_agent_by_state
SELECT snapshot, memory, seq FROM tasks INDEXED BY tasks_of_agent_by_state
WHERE tenant = :tenant AND agent = :agent AND hidden = 0 AND state NOT IN (1, 3) AND state = :state
  AND status_at > :after AND (status_at, id) < (:before_at, :before_id)
ORDER BY status_at DESC, id DESC LIMIT :size

-- name: tasks_of_context
SELECT snapshot, memory, seq FROM tasks INDEXED BY tasks_of_context
WHERE context_id = :context_id AND tenant = :tenant AND agent = :agent AND (:reach IS NULL OR owner = :reach)
  AND hidden = 0 AND status_at > :after AND (status_at, id) < (:before_at, :before_id)
  AND (:state = 0 OR state = :state)
ORDER BY status_at DESC, id DESC LIMIT :size

-- name: total_of_owner
SELECT COALESCE(sum(tasks), 0) FROM task_counts
WHERE tenant = :tenant AND agent = :agent AND owner = :reach AND (:state = 0 OR state = :state)

-- name: total_of_agent
SELECT COALESCE(sum(tasks), 0) FROM task_counts
WHERE tenant = :tenant AND agent = :agent AND (:state = 0 OR state = :state)

-- name: count_of_owner
SELECT count(*) FROM tasks
WHERE tenant = :tenant AND agent = :agent AND owner = :reach AND hidden = 0 AND status_at > :after
  AND (:state = 0 OR state = :state)

-- name: count_of_agent
SELECT count(*) FROM tasks
WHERE tenant = :tenant AND agent = :agent AND hidden = 0 AND status_at > :after AND (:state = 0 OR state = :state)

-- name: count_of_owner_by_state
SELECT count(*) FROM tasks INDEXED BY tasks_of_owner_by_state
WHERE tenant = :tenant AND agent = :agent AND owner = :reach AND hidden = 0 AND state NOT IN (1, 3) AND state = :state
  AND status_at > :after

-- name: count_of_agent_by_state
SELECT count(*) FROM tasks INDEXED BY tasks_of_agent_by_state
WHERE tenant = :tenant AND agent = :agent AND hidden = 0 AND state NOT IN (1, 3) AND state = :state AND status_at > :after

-- name: count_of_context
SELECT count(*) FROM tasks INDEXED BY tasks_of_context
WHERE context_id = :context_id AND tenant = :tenant AND agent = :agent AND (:reach IS NULL OR owner = :reach)
  AND hidden = 0 AND status_at > :after AND (:state = 0 OR state = :state)

-- name: context
SELECT snapshot, memory FROM tasks
WHERE context_id = :context_id AND agent = :agent AND tenant = :tenant AND owner = :owner
  AND place <= (SELECT place FROM tasks WHERE id = :task_id)
ORDER BY place DESC LIMIT :limit

-- name: due_writes
-- A scope's are delivered in order: what comes after one that waits to be tried again waits too.
SELECT id, task_id, tries, memory, context, messages FROM memory_outbox AS this
WHERE dead = 0 AND memory = :memory AND due_at <= :now AND NOT EXISTS (
    SELECT 1 FROM memory_outbox AS earlier
    WHERE earlier.dead = 0 AND earlier.memory = this.memory AND earlier.scope = this.scope
      AND earlier.id < this.id AND earlier.due_at > :now)
ORDER BY id LIMIT :limit

-- name: next_write
-- Of those that can go: the first of each scope.
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
-- Stored only once nothing is owed any more, and never over a failure.
UPDATE tasks SET memory = 'stored'
WHERE id = :task_id AND memory = 'pending' AND NOT EXISTS (SELECT 1 FROM memory_outbox WHERE task_id = :task_id)

-- name: retry_write
UPDATE memory_outbox SET tries = tries + 1, due_at = :due_at, problem = :problem WHERE id = :id

-- name: bury_write
UPDATE memory_outbox SET tries = tries + 1, dead = 1, problem = :problem WHERE id = :id

-- name: write_buried
UPDATE tasks SET memory = 'failed' WHERE id = ?

-- name: failed_writes
SELECT task_id, tries, problem, memory, context, messages FROM memory_outbox WHERE dead = 1 ORDER BY id LIMIT ?

-- name: tasks_of_failed_writes
UPDATE tasks SET memory = 'pending' WHERE id IN (SELECT task_id FROM memory_outbox WHERE dead = 1 AND memory = ?)

-- name: retry_failed_writes
-- One try is kept: they may have been made before.
UPDATE memory_outbox SET dead = 0, tries = 1, due_at = :now WHERE dead = 1 AND memory = :memory
RETURNING memory, context, messages

-- name: due_pushes
-- A config's pushes go out in order: only the first that is not delivered may be due.
SELECT push_outbox.id, tries, payload, config FROM push_outbox
JOIN push_configs ON push_configs.task_id = push_outbox.task_id AND push_configs.id = push_outbox.config_id
WHERE dead = 0 AND due_at <= :now AND NOT EXISTS (
    SELECT 1 FROM push_outbox AS earlier
    WHERE earlier.task_id = push_outbox.task_id AND earlier.config_id = push_outbox.config_id
      AND earlier.id < push_outbox.id AND earlier.dead = 0)
ORDER BY push_outbox.id LIMIT :limit

-- name: next_push
-- Of those that can go: the first of each config.
SELECT (
    SELECT due_at FROM push_outbox
    WHERE dead = 0 AND NOT EXISTS (
        SELECT 1 FROM push_outbox AS earlier
        WHERE earlier.task_id = push_outbox.task_id AND earlier.config_id = push_outbox.config_id
          AND earlier.id < push_outbox.id AND earlier.dead = 0)
    ORDER BY due_at LIMIT 1)

-- name: delete_push
DELETE FROM push_outbox WHERE id = ?

-- name: retry_push
UPDATE push_outbox SET tries = tries + 1, due_at = :due_at, problem = :problem WHERE id = :id

-- name: delay_push
UPDATE push_outbox SET due_at = :due_at WHERE id = :id

-- name: bury_push
UPDATE push_outbox SET tries = tries + 1, dead = 1, problem = :problem WHERE id = :id

-- name: task_is_reachable
SELECT 1 FROM tasks
WHERE id = :task_id AND tenant = :tenant AND agent = :agent AND (:reach IS NULL OR owner = :reach) AND hidden = 0

-- name: set_push_config
INSERT INTO push_configs (task_id, id, config) VALUES (:task_id, :id, :config)
ON CONFLICT (task_id, id) DO UPDATE SET config = excluded.config

-- name: push_configs
SELECT config FROM push_configs WHERE task_id = :task_id ORDER BY id

-- name: delete_push_config
DELETE FROM push_configs WHERE task_id = :task_id AND id = :id

-- name: delete_pushes_of_config
DELETE FROM push_outbox WHERE task_id = :task_id AND config_id = :id

-- name: purgeable
-- Those that are listed by agent, from the oldest on; then those that are not listed.
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

-- name: purge_events
DELETE FROM events WHERE task_id = ?

-- name: purge_memory_outbox
DELETE FROM memory_outbox WHERE task_id = ?

-- name: purge_push_outbox
DELETE FROM push_outbox WHERE task_id = ?

-- name: purge_push_configs
DELETE FROM push_configs WHERE task_id = ?

-- name: purge_tasks
DELETE FROM tasks WHERE id = ?

-- name: owned
SELECT place, agent, snapshot, memory FROM tasks
WHERE tenant = :tenant AND owner = :owner AND place > :after
ORDER BY place LIMIT :limit

-- name: restore
INSERT INTO tasks (place, id, agent, tenant, owner, context_id, state, status_at, created_at, seq, snapshot)
SELECT 1 + max(COALESCE((SELECT max(id) FROM turns), 0), COALESCE((SELECT max(place) FROM tasks), 0)),
       :task_id, :agent, :tenant, :owner, :context_id, :state, :now, :now, 1, :snapshot
WHERE NOT EXISTS (SELECT 1 FROM tasks WHERE id = :task_id)

-- name: erase_steps
DELETE FROM steps WHERE turn_id IN (
    SELECT place FROM tasks WHERE tenant = :tenant AND owner = :owner
    UNION ALL
    SELECT turns.id FROM tasks JOIN turns ON turns.task_id = tasks.id AND turns.follows = 1
    WHERE tasks.tenant = :tenant AND tasks.owner = :owner)

-- name: erase_memory_outbox
DELETE FROM memory_outbox WHERE task_id IN (SELECT id FROM tasks WHERE tenant = :tenant AND owner = :owner)

-- name: erase_push_outbox
DELETE FROM push_outbox WHERE task_id IN (SELECT id FROM tasks WHERE tenant = :tenant AND owner = :owner)

-- name: erase_push_configs
DELETE FROM push_configs WHERE task_id IN (SELECT id FROM tasks WHERE tenant = :tenant AND owner = :owner)

-- name: erase_events
DELETE FROM events WHERE task_id IN (SELECT id FROM tasks WHERE tenant = :tenant AND owner = :owner)

-- name: erase_turns
DELETE FROM turns WHERE id IN (
    SELECT place FROM tasks WHERE tenant = :tenant AND owner = :owner
    UNION ALL
    SELECT turns.id FROM tasks JOIN turns ON turns.task_id = tasks.id AND turns.follows = 1
    WHERE tasks.tenant = :tenant AND tasks.owner = :owner)

-- name: erase_tasks
DELETE FROM tasks WHERE tenant = :tenant AND owner = :owner

-- name: count_steps
SELECT count(*) FROM steps WHERE turn_id IN (
    SELECT place FROM tasks WHERE tenant = :tenant AND owner = :owner
    UNION ALL
    SELECT turns.id FROM tasks JOIN turns ON turns.task_id = tasks.id AND turns.follows = 1
    WHERE tasks.tenant = :tenant AND tasks.owner = :owner)

-- name: count_memory_outbox
SELECT count(*) FROM memory_outbox WHERE task_id IN (SELECT id FROM tasks WHERE tenant = :tenant AND owner = :owner)

-- name: count_push_outbox
SELECT count(*) FROM push_outbox WHERE task_id IN (SELECT id FROM tasks WHERE tenant = :tenant AND owner = :owner)

-- name: count_push_configs
SELECT count(*) FROM push_configs WHERE task_id IN (SELECT id FROM tasks WHERE tenant = :tenant AND owner = :owner)

-- name: count_events
SELECT count(*) FROM events WHERE task_id IN (SELECT id FROM tasks WHERE tenant = :tenant AND owner = :owner)

-- name: count_turns
SELECT count(*) FROM turns WHERE id IN (
    SELECT place FROM tasks WHERE tenant = :tenant AND owner = :owner
    UNION ALL
    SELECT turns.id FROM tasks JOIN turns ON turns.task_id = tasks.id AND turns.follows = 1
    WHERE tasks.tenant = :tenant AND tasks.owner = :owner)

-- name: count_tasks
SELECT count(*) FROM tasks WHERE tenant = :tenant AND owner = :owner
