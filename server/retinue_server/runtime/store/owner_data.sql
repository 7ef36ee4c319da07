-- Everything of one owner: export, import, erasure.

-- name: owned
SELECT place, agent, snapshot, memory FROM tasks
WHERE tenant = :tenant AND owner = :owner AND place > :after
ORDER BY place LIMIT :limit

-- name: restore
-- At a place of its own, unless the id is taken.
INSERT INTO tasks (place, id, agent, tenant, owner, context_id, state, status_at, created_at, generation, snapshot)
SELECT 1 + max(COALESCE((SELECT max(id) FROM turns), 0), COALESCE((SELECT max(place) FROM tasks), 0)),
       :task_id, :agent, :tenant, :owner, :context_id, :state, :now, :now, 1, :snapshot
WHERE NOT EXISTS (SELECT 1 FROM tasks WHERE id = :task_id)

-- name: erase_steps
DELETE FROM steps WHERE turn_id IN (
    SELECT place FROM tasks WHERE tenant = :tenant AND owner = :owner
    UNION ALL
    SELECT turns.id FROM tasks JOIN turns ON turns.task_id = tasks.id AND turns.follows = 1
    WHERE tasks.tenant = :tenant AND tasks.owner = :owner)

-- name: erase_turns
DELETE FROM turns WHERE id IN (
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

-- name: erase_tasks
DELETE FROM tasks WHERE tenant = :tenant AND owner = :owner

-- name: count_steps
SELECT count(*) FROM steps WHERE turn_id IN (
    SELECT place FROM tasks WHERE tenant = :tenant AND owner = :owner
    UNION ALL
    SELECT turns.id FROM tasks JOIN turns ON turns.task_id = tasks.id AND turns.follows = 1
    WHERE tasks.tenant = :tenant AND tasks.owner = :owner)

-- name: count_turns
SELECT count(*) FROM turns WHERE id IN (
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

-- name: count_tasks
SELECT count(*) FROM tasks WHERE tenant = :tenant AND owner = :owner
