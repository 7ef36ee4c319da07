-- Every statement names the whole scope, except `pending_scopes`, which finds the scopes with pending messages.

-- name: missing_slots
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
LIMIT :limit

-- name: add_slots
-- `:slots` is a list of [seq, slot]; those of rows deleted meanwhile are left out.
INSERT OR IGNORE INTO memory_slots (tenant, space, owner, owner_id, slot, memory_seq)
SELECT :tenant, :space, :owner, :owner_id, json_extract(claimed.value, '$[1]'), seq
FROM json_each(:slots) AS claimed
JOIN memories ON seq = json_extract(claimed.value, '$[0]')
WHERE +tenant = :tenant AND +space = :space AND +owner = :owner AND +owner_id = :owner_id

-- name: candidates
-- The current memories of a speaker that a new one may merge with or supersede: among the rows :seqs, and those that have one
-- of the slots :slots. The columns are the fields of `Candidate`.
SELECT seq, id, role, content, session_id, created_at, coalesce(valid_from, created_at) FROM memories
WHERE +tenant = :tenant AND +space = :space AND +owner = :owner AND +owner_id = :owner_id
  AND seq IN (
      SELECT value FROM json_each(:seqs)
      UNION ALL
      SELECT seq FROM (
          SELECT DISTINCT memories.seq AS seq FROM memory_slots AS held
          JOIN memories ON memories.seq = held.memory_seq
          WHERE held.tenant = :tenant AND held.space = :space AND held.owner = :owner AND held.owner_id = :owner_id
            AND held.slot IN (SELECT value FROM json_each(:slots))
            AND memories.valid_to IS NULL
          ORDER BY memories.seq DESC
          LIMIT 32
      )
  )
  AND valid_to IS NULL AND quarantined IS NULL AND speaker = :speaker AND role <> 'assistant'
ORDER BY seq

-- name: latest_said
SELECT seq, id, role, content, session_id, created_at, coalesce(valid_from, created_at), speaker FROM memories
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id
  AND role = 'user' AND valid_to IS NULL AND quarantined IS NULL AND session_id = :session_id
ORDER BY created_at DESC, seq DESC
LIMIT 1

-- name: set_pending
UPDATE memories SET pending = 1
WHERE +tenant = :tenant AND +space = :space AND +owner = :owner AND +owner_id = :owner_id AND seq = :seq

-- name: pending_scopes
SELECT DISTINCT tenant, owner, owner_id, session_id FROM memories
WHERE space = :space AND pending IS NOT NULL

-- name: pending
SELECT seq FROM memories
WHERE tenant = :tenant AND space = :space AND owner = :owner AND owner_id = :owner_id
  AND pending IS NOT NULL AND session_id = :session_id
ORDER BY seq
LIMIT :limit

-- name: set_extracted
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
