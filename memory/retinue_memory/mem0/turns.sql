-- The rows of mem0_turns. Every statement names the space.

-- name: accept
INSERT INTO mem0_turns (
    space, scope, turn, entity_field, entity_id, state, void, messages, about, infer, event, tries, failures, since, due,
    accepted_at
) VALUES (
    :space, :scope, :turn, :entity_field, :entity_id, 'sent', FALSE, :messages, :about, :infer, NULL, 0, 0, :now, :due, :now
)
ON CONFLICT DO NOTHING

-- name: one
SELECT * FROM mem0_turns WHERE space = :space AND scope = :scope AND turn = :turn

-- name: of_scope
-- All turns but those that mem0 finds, in the order in which they were accepted.
SELECT * FROM mem0_turns
WHERE space = :space AND scope = :scope AND (state <> 'done' OR void)
ORDER BY accepted_at, turn

-- name: due
SELECT * FROM mem0_turns
WHERE space = :space AND due <= :now AND state IN ('new', 'sent', 'pending')
ORDER BY due LIMIT :limit

-- name: next_due
SELECT min(due) FROM mem0_turns WHERE space = :space AND due > :now AND state IN ('new', 'sent', 'pending')

-- name: waiting
SELECT count(*) FROM mem0_turns
WHERE space = :space AND (:scope IS NULL OR scope = :scope) AND state IN ('new', 'sent', 'pending')

-- name: advance
-- Set a new state. A turn that is done or void does not need its text any more. A void one is never done: what mem0 made of it
-- is deleted first, then the row.
UPDATE mem0_turns SET
    state = iif(void AND :state = 'done', state, :state), event = iif(void AND :state = 'done', event, :event),
    infer = :infer, failures = :failures, since = :now, due = :due,
    tries = iif(:state IN ('new', 'sent'), tries + (:state = 'new'), 0),
    messages = iif(void OR :state = 'done', '[]', messages)
WHERE space = :space AND scope = :scope AND turn = :turn
RETURNING void

-- name: again
UPDATE mem0_turns SET tries = tries + 1, due = :due WHERE space = :space AND scope = :scope AND turn = :turn

-- name: make_void
UPDATE mem0_turns SET void = TRUE, messages = '[]', about = '{}'
WHERE space = :space AND scope = :scope AND (:turn IS NULL OR turn = :turn)

-- name: drop
DELETE FROM mem0_turns WHERE space = :space AND scope = :scope AND turn = :turn

-- name: drop_settled
-- Of an erased scope, the turns that mem0 is not working on. The others stay void until it has finished.
DELETE FROM mem0_turns WHERE space = :space AND scope = :scope AND state IN ('new', 'done', 'failed')

-- name: drop_old
DELETE FROM mem0_turns WHERE space = :space AND state = 'done' AND accepted_at < :before

-- name: count
SELECT count(*) FROM mem0_turns WHERE space = :space AND scope = :scope
