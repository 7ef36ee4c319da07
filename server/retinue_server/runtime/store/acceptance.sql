-- Accepting a message.

-- name: turn_of_message
-- The turn that the same message started before, if any.
SELECT id, task_id, digest, answer FROM turns
WHERE owner = :owner AND message_id = :message_id AND agent = :agent AND tenant = :tenant

-- name: task_for_turn
-- The task that a message follows up. `visible_owner` NULL: the caller may act for every owner of the tenant.
SELECT owner, context_id, state, snapshot, memory, generation,
       EXISTS (SELECT 1 FROM push_configs WHERE task_id = tasks.id) AS pushes
FROM tasks
WHERE id = :task_id AND tenant = :tenant AND agent = :agent AND (:visible_owner IS NULL OR owner = :visible_owner)

-- name: owners_of_message
-- The owners under whom this message was accepted before: one, or too many to choose.
SELECT owner FROM turns
WHERE message_id = :message_id AND context_id = :context_id AND agent = :agent AND tenant = :tenant
  AND (:visible_owner IS NULL OR owner = :visible_owner)
LIMIT 2

-- name: owners_of_context
-- The owners who have tasks in this context: one, or too many to choose.
SELECT DISTINCT owner FROM tasks
WHERE context_id = :context_id AND agent = :agent AND tenant = :tenant
  AND (:visible_owner IS NULL OR owner = :visible_owner)
LIMIT 2

-- name: context_is_known
SELECT 1 FROM tasks
WHERE context_id = :context_id AND agent = :agent AND tenant = :tenant AND owner = :owner
LIMIT 1

-- name: insert_turn
-- Running at once, or waiting if an earlier turn of the same context and owner is open. The id is above every place in use:
-- restored tasks have a place without a turn.
INSERT INTO turns (id, task_id, agent, tenant, owner, context_id, message_id, digest, request, extensions, follows, state)
VALUES (
    1 + max(COALESCE((SELECT max(id) FROM turns), 0), COALESCE((SELECT max(place) FROM tasks), 0)),
    :task_id, :agent, :tenant, :owner, :context_id, :message_id, :digest, :request, :extensions, :follows, NOT EXISTS (
        SELECT 1 FROM turns
        WHERE context_id = :context_id AND owner = :owner AND agent = :agent AND tenant = :tenant AND state < 2))
RETURNING id

-- name: insert_task
INSERT INTO tasks (place, id, agent, tenant, owner, context_id, state, status_at, created_at, generation, snapshot)
VALUES (:place, :task_id, :agent, :tenant, :owner, :context_id, :state, :now, :now, 1, :snapshot)

-- name: turn_by_id
SELECT turns.*, tasks.snapshot, tasks.memory, tasks.generation,
       EXISTS (SELECT 1 FROM push_configs WHERE task_id = turns.task_id) AS pushes
FROM turns JOIN tasks ON tasks.id = turns.task_id
WHERE turns.id = ?
