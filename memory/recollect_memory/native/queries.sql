-- Every statement names the whole scope: no caller can reach another's rows by an id.

-- name: state
SELECT version, epoch FROM memory_scopes
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id

-- name: next_version
INSERT INTO memory_scopes (tenant, space, owner, owner_id, version, epoch)
VALUES (:tenant, :space, :owner, :owner_id, 1, 0)
ON CONFLICT (tenant, space, owner, owner_id) DO UPDATE SET version = version + 1
RETURNING version

-- name: is_taken
-- Two lookups: with OR in one, SQLite reads the whole scope.
SELECT EXISTS (
    SELECT 1 FROM memory_sources
    WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id
      AND message_id = :message_id
) OR EXISTS (
    SELECT 1 FROM memory_sources
    WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id
      AND turn_id = :turn_id AND position = :position
)

-- name: refresh_duplicate
UPDATE memories SET said_at = max(said_at, :said_at), version = :version
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id
  AND content_hash = :content_hash
RETURNING seq

-- name: insert_memory
INSERT INTO memories (
    tenant, space, owner, owner_id, id, version, kind, role, speaker, content, content_hash, session_id,
    created_at, said_at, embedder, dimensions, vector
) VALUES (
    :tenant, :space, :owner, :owner_id, :id, :version, :kind, :role, :speaker, :content, :content_hash, :session_id,
    :said_at, :said_at, :embedder, :dimensions, :vector
)
RETURNING seq

-- name: insert_source
INSERT INTO memory_sources (tenant, space, owner, owner_id, message_id, memory_seq, turn_id, position, said_at)
VALUES (:tenant, :space, :owner, :owner_id, :message_id, :memory_seq, :turn_id, :position, :said_at)

-- name: changed_since
SELECT seq, version, role, speaker, content, session_id, created_at, said_at, embedder, vector FROM memories
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id AND version > :version
ORDER BY seq

-- name: by_seq
-- "+" keeps SQLite from reading the whole scope through one of its indexes: the few rows are found by seq, then checked.
SELECT seq, id, kind, role, speaker, content, created_at FROM memories
WHERE +tenant = :tenant AND +space = :space AND +owner = :owner AND +owner_id = :owner_id
  AND seq IN (SELECT value FROM json_each(:seqs))

-- name: sources_by_seq
SELECT memory_seq, message_id FROM memory_sources
WHERE +tenant = :tenant AND +space = :space AND +owner = :owner AND +owner_id = :owner_id
  AND memory_seq IN (SELECT value FROM json_each(:seqs))
ORDER BY memory_seq, said_at, message_id
