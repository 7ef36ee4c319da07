-- Push configs, and the pushes on their way.

-- name: task_is_visible
SELECT 1 FROM tasks
WHERE id = :task_id AND tenant = :tenant AND agent = :agent AND hidden = 0
  AND (:visible_owner IS NULL OR owner = :visible_owner)

-- name: set_push_config
INSERT INTO push_configs (task_id, id, config) VALUES (:task_id, :id, :config)
ON CONFLICT (task_id, id) DO UPDATE SET config = excluded.config

-- name: push_configs
SELECT config FROM push_configs WHERE task_id = :task_id ORDER BY id

-- name: delete_push_config
DELETE FROM push_configs WHERE task_id = :task_id AND id = :id

-- name: delete_pushes_of_config
DELETE FROM push_outbox WHERE task_id = :task_id AND config_id = :id

-- name: insert_push
-- One row for each of the task's configs.
INSERT INTO push_outbox (task_id, config_id, payload, due_at)
SELECT task_id, id, :payload, :now FROM push_configs WHERE task_id = :task_id ORDER BY id

-- name: due_pushes
-- The pushes of one config are delivered in order: only the first undelivered one may be due.
SELECT push_outbox.id, tries, payload, config FROM push_outbox
JOIN push_configs ON push_configs.task_id = push_outbox.task_id AND push_configs.id = push_outbox.config_id
WHERE dead = 0 AND due_at <= :now AND NOT EXISTS (
    SELECT 1 FROM push_outbox AS earlier
    WHERE earlier.task_id = push_outbox.task_id AND earlier.config_id = push_outbox.config_id
      AND earlier.id < push_outbox.id AND earlier.dead = 0)
ORDER BY push_outbox.id LIMIT :limit

-- name: next_push
-- The earliest among the first pushes of each config; the others cannot go yet.
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
-- Without counting a try.
UPDATE push_outbox SET due_at = :due_at WHERE id = :id

-- name: bury_push
-- Give up.
UPDATE push_outbox SET tries = tries + 1, dead = 1, problem = :problem WHERE id = :id
