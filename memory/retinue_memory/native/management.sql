-- The owner's operations. Every statement names the whole scope.

-- name: page
SELECT seq, created_at FROM memories
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id
  AND (created_at, seq) < (:before_time, :before_seq)
  AND created_at >= :since AND created_at < :until
  AND (:quarantined OR quarantined IS NULL)
  AND (
      :mode = 'all'
      OR :mode = 'current' AND valid_to IS NULL AND (pinned OR coalesce(expires_at > :at, TRUE))
      OR :mode = 'as_of' AND coalesce(valid_from, created_at) <= :at AND coalesce(valid_to > :at, TRUE)
          AND (pinned OR coalesce(expires_at > :at, TRUE))
  )
  AND (:kinds IS NULL OR kind IN (SELECT value FROM json_each(:kinds)))
ORDER BY created_at DESC, seq DESC
LIMIT :limit

-- name: revisions
SELECT memory_seq, revision, kind, content, replaced_at FROM memory_revisions
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id
  AND memory_seq IN (SELECT value FROM json_each(:seqs))
ORDER BY memory_seq, revision

-- name: lineage
-- The memory, those that it superseded, and those that they superseded, and so on.
WITH RECURSIVE line (seq, id) AS (
    SELECT seq, id FROM memories
    WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id AND id = :id
    UNION
    SELECT memories.seq, memories.id FROM line JOIN memories
        ON tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id AND superseded_by = line.id
)
SELECT seq FROM line

-- name: for_edit
SELECT seq, kind, content, role, speaker, quarantined IS NOT NULL, valid_to IS NULL, revision FROM memories
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id AND id = :id

-- name: same_words
SELECT id FROM memories
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id
  AND content_hash = :content_hash AND id <> :id

-- name: insert_revision
INSERT INTO memory_revisions (
    tenant, space, owner, owner_id, memory_seq, revision, kind, content, replaced_at
) VALUES (:tenant, :space, :owner, :owner_id, :memory_seq, :revision, :kind, :content, :replaced_at)

-- name: rewrite
UPDATE memories
SET content = :content, content_hash = :content_hash, revision = revision + 1, version = :version,
    embedder = :embedder, dimensions = :dimensions, vector = :vector, tokens = :tokens
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id AND id = :id

-- name: pin
UPDATE memories SET pinned = :pinned, version = :version
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id AND id = :id
RETURNING seq

-- name: said_between
SELECT seq FROM memories
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id
  AND (created_at >= :since AND created_at < :until OR said_at >= :since AND said_at < :until)
UNION
SELECT memory_seq FROM memory_sources
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id
  AND said_at >= :since AND said_at < :until

-- name: texts
SELECT seq, speaker || ' ' || content FROM memories
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id
UNION ALL
SELECT memory_seq, content FROM memory_revisions
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id

-- name: derived_from
-- The memories that were derived from the messages :seqs.
SELECT DISTINCT made.memory_seq
FROM memory_sources AS theirs
JOIN memory_sources AS made
    ON made.tenant = :tenant AND made.space = :space AND made.owner = :owner AND made.owner_id = :owner_id
   AND made.message_id = theirs.message_id
JOIN memories AS message ON message.seq = theirs.memory_seq AND message.role <> 'system'
JOIN memories AS draft ON draft.seq = made.memory_seq AND draft.role = 'system'
WHERE +theirs.tenant = :tenant AND +theirs.space = :space AND +theirs.owner = :owner AND +theirs.owner_id = :owner_id
  AND theirs.memory_seq IN (SELECT value FROM json_each(:seqs))

-- name: delete_revisions
DELETE FROM memory_revisions
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id
  AND memory_seq IN (SELECT value FROM json_each(:seqs))

-- name: delete_sources
DELETE FROM memory_sources
WHERE +tenant = :tenant AND +space = :space AND +owner = :owner AND +owner_id = :owner_id
  AND memory_seq IN (SELECT value FROM json_each(:seqs))

-- name: clear_successors
-- What a deleted memory superseded stays superseded, without naming its successor.
UPDATE memories SET superseded_by = NULL, version = :version
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id
  AND superseded_by IN (SELECT id FROM memories WHERE seq IN (SELECT value FROM json_each(:seqs)))

-- name: delete_memories
DELETE FROM memories
WHERE +tenant = :tenant AND +space = :space AND +owner = :owner AND +owner_id = :owner_id
  AND seq IN (SELECT value FROM json_each(:seqs))

-- name: erase_memory_slots
DELETE FROM memory_slots
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id

-- name: erase_memory_revisions
DELETE FROM memory_revisions
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id

-- name: erase_memory_sources
DELETE FROM memory_sources
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id

-- name: erase_memories
DELETE FROM memories
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id

-- name: erase_memory_scopes
DELETE FROM memory_scopes
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id

-- name: count_memory_slots
SELECT count(*) FROM memory_slots
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id

-- name: count_memory_revisions
SELECT count(*) FROM memory_revisions
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id

-- name: count_memory_sources
SELECT count(*) FROM memory_sources
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id

-- name: count_memories
SELECT count(*) FROM memories
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id

-- name: count_memory_scopes
SELECT count(*) FROM memory_scopes
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id

-- name: least_valuable
-- What to delete first from a full scope: superseded or expired memories, then quarantined ones, then those of the assistant,
-- then messages before facts; within each group the oldest. Never what the current write stores.
SELECT seq FROM memories
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id AND NOT pinned
  AND version < :version
ORDER BY valid_to IS NULL AND coalesce(expires_at > :now, TRUE), quarantined IS NULL, role <> 'assistant',
    kind <> 'RecentMessage', said_at, seq
LIMIT :limit

-- name: without_vector
SELECT seq, revision, content FROM memories
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id AND embedder IS NOT :embedder
  AND seq < :before
ORDER BY seq DESC
LIMIT :limit

-- name: set_vector
UPDATE memories
SET embedder = :embedder, dimensions = :dimensions, vector = :vector, tokens = :tokens, version = :version
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id
  AND seq = :seq AND revision = :revision

-- name: everything
SELECT seq, id, kind, role, speaker, content, session_id, created_at, said_at, valid_from, valid_to, superseded_by, pinned,
    expires_at, quarantined, revision, embedder, vector, tokens
FROM memories
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id AND seq > :after
ORDER BY seq
LIMIT :limit

-- name: all_sources
SELECT memory_seq, message_id, said_at, turn_id, position FROM memory_sources
WHERE +tenant = :tenant AND +space = :space AND +owner = :owner AND +owner_id = :owner_id
  AND memory_seq IN (SELECT value FROM json_each(:seqs))
ORDER BY memory_seq, said_at, message_id

-- name: is_there
SELECT EXISTS (
    SELECT 1 FROM memories
    WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id AND id = :id
) OR EXISTS (
    SELECT 1 FROM memories
    WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id
      AND content_hash = :content_hash
)
