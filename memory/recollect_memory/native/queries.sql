-- Every statement names the whole scope: no caller can reach another's rows by an id.

-- name: state
SELECT version, epoch, life FROM memory_scopes
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id

-- name: begin
INSERT INTO memory_scopes (tenant, space, owner, owner_id, version, epoch, life)
VALUES (:tenant, :space, :owner, :owner_id, 0, :life, :life)
ON CONFLICT (tenant, space, owner, owner_id) DO NOTHING

-- name: next_version
UPDATE memory_scopes SET version = version + 1
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id
RETURNING version

-- name: next_epoch
UPDATE memory_scopes SET epoch = epoch + 1
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id

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
-- Only what is current has the hash of its words. What is said again lasts as long as it now would.
UPDATE memories SET said_at = max(said_at, :said_at), expires_at = :expires_at, version = :version
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id
  AND content_hash = :content_hash
RETURNING seq, id

-- name: refresh
UPDATE memories SET said_at = max(said_at, :said_at), version = :version
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id
  AND id = :id AND valid_to IS NULL
RETURNING seq

-- name: insert_memory
INSERT INTO memories (
    tenant, space, owner, owner_id, id, version, kind, role, speaker, content, content_hash, session_id,
    created_at, said_at, valid_from, valid_to, superseded_by, pinned, expires_at, quarantined, revision,
    embedder, dimensions, vector, tokens
) VALUES (
    :tenant, :space, :owner, :owner_id, :id, :version, :kind, :role, :speaker, :content, :content_hash, :session_id,
    :created_at, :said_at, :valid_from, :valid_to, :superseded_by, :pinned, :expires_at, :quarantined, :revision,
    :embedder, :dimensions, :vector, :tokens
)
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
LIMIT :most

-- name: by_seq
-- "+" keeps SQLite from reading the whole scope through one of its indexes: the few rows are found by seq, then checked.
SELECT seq, id, kind, content, role, speaker, session_id, created_at, valid_from, valid_to, superseded_by, pinned,
    expires_at, quarantined, revision
FROM memories
WHERE +tenant = :tenant AND +space = :space AND +owner = :owner AND +owner_id = :owner_id
  AND seq IN (SELECT value FROM json_each(:seqs))

-- name: seqs_by_id
SELECT seq FROM memories
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id
  AND id IN (SELECT value FROM json_each(:ids))

-- name: latest_current
SELECT seq FROM memories
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id
  AND valid_to IS NULL AND quarantined IS NULL
ORDER BY created_at DESC, seq DESC
LIMIT :most

-- name: sources_by_seq
SELECT memory_seq, message_id FROM memory_sources
WHERE +tenant = :tenant AND +space = :space AND +owner = :owner AND +owner_id = :owner_id
  AND memory_seq IN (SELECT value FROM json_each(:seqs))
ORDER BY memory_seq, said_at, message_id
