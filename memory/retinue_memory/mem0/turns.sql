-- The rows of mem0_turns. Every statement names the space.

-- name: accept
INSERT INTO mem0_turns (
    space, scope, turn, entity_field, entity_id, state, void, messages, about, infer, event, tries, failures, since, due,
    accepted_at
) VALUES (
    :space, :scope, :turn, :entity_field, :entity_id, :state, FALSE, :messages, :about, :infer, NULL, 0, 0, :now, :due, :now
)
ON CONFLICT DO NOTHING

-- name: has_new
SELECT 1 FROM mem0_turns WHERE space = :space AND scope = :scope AND state = 'new' LIMIT 1

-- name: one
SELECT * FROM mem0_turns WHERE space = :space AND scope = :scope AND turn = :turn

-- name: of_scope
-- All turns but those that mem0 finds, in the order in which they were accepted.
SELECT * FROM mem0_turns
WHERE space = :space AND scope = :scope AND (state <> 'done' OR void)
ORDER BY accepted_at, turn

-- name: due
-- The turns of a scope are sent in their order: one waits while an earlier one does.
SELECT * FROM mem0_turns AS this
WHERE space = :space AND due <= :now AND state IN ('new', 'sent', 'pending') AND NOT (state = 'new' AND EXISTS (
    SELECT 1 FROM mem0_turns AS earlier
    WHERE earlier.space = this.space AND earlier.scope = this.scope AND earlier.state = 'new'
      AND earlier.accepted_at < this.accepted_at))
ORDER BY due LIMIT :limit

-- name: next_due
SELECT min(due) FROM mem0_turns WHERE space = :space AND due > :now AND state IN ('new', 'sent', 'pending')

-- name: waiting
SELECT count(*) FROM mem0_turns
WHERE space = :space AND (:scope IS NULL OR scope = :scope) AND state IN ('new', 'sent', 'pending')

-- name: advance
-- A new state. What is searchable, and what is void, needs its text no longer. A void one is never done: what mem0 made of it
-- is to be deleted, and the row then.
UPDATE mem0_turns SET
    state = iif(void AND :state = 'done', state, :state), event = iif(void AND :state = 'done', event, :event),
    infer = :infer, failures = :failures, since = :now, due = :due,
    tries = iif(:state IN ('new', 'sent') AND state <> 'pending', tries, 0),
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
