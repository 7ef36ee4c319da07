-- Every statement names the whole scope, so that an id of another scope is not found.

-- name: state
SELECT version, epoch, generation, slots_version FROM memory_scopes
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id

-- name: start_generation
INSERT INTO memory_scopes (tenant, space, owner, owner_id, version, epoch, generation)
VALUES (:tenant, :space, :owner, :owner_id, 0, :generation, :generation)
ON CONFLICT (tenant, space, owner, owner_id) DO NOTHING

-- name: next_version
UPDATE memory_scopes SET version = :version, slots_version = :slots_version
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id

-- name: next_epoch
UPDATE memory_scopes SET epoch = epoch + 1
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id

-- name: stored_before
-- Which of the messages, each as [id, turn, position], are sources of a memory. Two subqueries: with OR in one, SQLite reads
-- the whole scope.
SELECT asked.key FROM json_each(:messages) AS asked
WHERE EXISTS (
    SELECT 1 FROM memory_sources
    WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id
      AND message_id = json_extract(asked.value, '$[0]')
) OR EXISTS (
    SELECT 1 FROM memory_sources
    WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id
      AND turn_id = json_extract(asked.value, '$[1]') AND position = json_extract(asked.value, '$[2]')
)

-- name: refresh
UPDATE memories SET said_at = max(said_at, :said_at), version = :version
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id
  AND id = :id AND valid_to IS NULL
RETURNING seq

-- name: insert_memory
-- Insert a memory, or refresh the current one with the same words: only a current memory has the hash of its words. A
-- refreshed memory gets the expiry of the new one.
INSERT INTO memories (
    tenant, space, owner, owner_id, id, version, kind, role, speaker, content, content_hash, session_id,
    created_at, said_at, valid_from, valid_to, superseded_by, pinned, expires_at, quarantined, revision,
    embedder, dimensions, vector, tokens
) VALUES (
    :tenant, :space, :owner, :owner_id, :id, :version, :kind, :role, :speaker, :content, :content_hash, :session_id,
    :created_at, :said_at, :valid_from, :valid_to, :superseded_by, :pinned, :expires_at, :quarantined, :revision,
    :embedder, :dimensions, :vector, :tokens
)
ON CONFLICT (tenant, space, owner, owner_id, content_hash) DO UPDATE
SET said_at = max(said_at, excluded.said_at), expires_at = excluded.expires_at, version = excluded.version
RETURNING seq, id

-- name: insert_source
INSERT OR IGNORE INTO memory_sources (
    tenant, space, owner, owner_id, message_id, memory_seq, turn_id, position, said_at
) VALUES (:tenant, :space, :owner, :owner_id, :message_id, :memory_seq, :turn_id, :position, :said_at)

-- name: supersede
UPDATE memories
SET valid_to = max(:at, coalesce(valid_from, created_at)), superseded_by = :by, content_hash = :content_hash,
    version = :version
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id
  AND id = :id AND valid_to IS NULL
RETURNING seq

-- name: changed_since
SELECT seq, version, role, speaker, content, session_id, created_at, said_at, embedder, vector, kind, valid_from, valid_to,
    expires_at, pinned, quarantined IS NOT NULL, tokens
FROM memories
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id AND version > :version
ORDER BY seq
LIMIT :limit

-- name: by_seq
-- One row for each source of a memory; few have several. The "+" keeps SQLite from using an index of the scope: the few rows
-- are found by seq, then checked.
SELECT memories.seq, id, kind, content, role, speaker, session_id, created_at, valid_from, valid_to, superseded_by, pinned,
    expires_at, quarantined, revision, message_id
FROM memories LEFT JOIN memory_sources ON memory_seq = memories.seq
WHERE +memories.tenant = :tenant AND +memories.space = :space AND +memories.owner = :owner
  AND +memories.owner_id = :owner_id
  AND memories.seq IN (SELECT value FROM json_each(:seqs))
ORDER BY memories.seq

-- name: sources_in_order
SELECT message_id FROM memory_sources
WHERE +tenant = :tenant AND +space = :space AND +owner = :owner AND +owner_id = :owner_id AND memory_seq = :seq
ORDER BY said_at, message_id

-- name: seqs_by_id
SELECT seq FROM memories
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id
  AND id IN (SELECT value FROM json_each(:ids))
