-- Every statement names the whole scope, but `pending_scopes`, which finds the scopes of a space that have work left.

-- name: unread
SELECT seq, content FROM memories
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id
  AND version > (
      SELECT slots_version FROM memory_scopes
      WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id
  )
  AND version <= :version AND role IN ('user', 'system') AND valid_to IS NULL AND quarantined IS NULL

-- name: changed
SELECT seq, content FROM memories
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id
  AND version > :version AND role IN ('user', 'system') AND valid_to IS NULL AND quarantined IS NULL
ORDER BY version DESC
LIMIT 200

-- name: add_slot
INSERT OR IGNORE INTO memory_slots (tenant, space, owner, owner_id, slot, memory_seq)
SELECT :tenant, :space, :owner, :owner_id, :slot, seq FROM memories
WHERE +tenant = :tenant AND +space = :space AND +owner = :owner AND +owner_id = :owner_id AND seq = :seq

-- name: read_to
UPDATE memory_scopes SET slots_version = max(slots_version, :version)
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id

-- name: by_slots
SELECT DISTINCT memories.seq FROM memory_slots AS held
JOIN memories ON memories.seq = held.memory_seq
WHERE held.tenant = :tenant AND held.space = :space AND held.owner = :owner AND held.owner_id = :owner_id
  AND held.slot IN (SELECT value FROM json_each(:slots))
  AND memories.valid_to IS NULL
ORDER BY memories.seq DESC
LIMIT 32

-- name: latest_said
SELECT seq FROM memories
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id
  AND role = 'user' AND valid_to IS NULL AND quarantined IS NULL AND session_id = :session_id
ORDER BY created_at DESC, seq DESC
LIMIT 1

-- name: set_pending
UPDATE memories SET pending = :pending
WHERE +tenant = :tenant AND +space = :space AND +owner = :owner AND +owner_id = :owner_id AND seq = :seq

-- name: pending_scopes
SELECT DISTINCT tenant, owner, owner_id, session_id FROM memories
WHERE space = :space AND pending IS NOT NULL

-- name: pending
SELECT seq FROM memories
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id
  AND pending IS NOT NULL AND session_id = :session_id
ORDER BY seq
LIMIT :most

-- name: settled
UPDATE memories SET pending = NULL, expires_at = CASE WHEN pinned THEN expires_at ELSE coalesce(:expires_at, expires_at) END,
    version = :version
WHERE +tenant = :tenant AND +space = :space AND +owner = :owner AND +owner_id = :owner_id
  AND seq = :seq AND pending IS NOT NULL

-- name: summary_of
SELECT seq FROM memories
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id
  AND session_id = :session_id AND kind = 'Summary' AND valid_to IS NULL
ORDER BY seq DESC
LIMIT 1
