-- Validity, pins, expiry, quarantine, history. No row of `memories` is rewritten, so a file of any size is upgraded quickly.
--
-- A memory is *current* while valid_to IS NULL. The UNIQUE key over content_hash keeps the same words from being current
-- twice. A memory that is superseded gets 32 random bytes as its content_hash, so the same words can be stored again.
-- Quarantined memories have other hashes than the same words without quarantine.

ALTER TABLE memories ADD COLUMN valid_from INTEGER;     -- when it started to hold; NULL: when it was first said
ALTER TABLE memories ADD COLUMN valid_to INTEGER;       -- when it stopped holding; NULL: it is current
ALTER TABLE memories ADD COLUMN superseded_by TEXT;     -- the id of the memory that replaced it
ALTER TABLE memories ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0 CHECK (pinned IN (0, 1)); -- neither expires nor fades
ALTER TABLE memories ADD COLUMN expires_at INTEGER;     -- from then on only a search with as_of finds it; NULL: never
ALTER TABLE memories ADD COLUMN quarantined TEXT;       -- why it is kept out of prompts; NULL: it is not
ALTER TABLE memories ADD COLUMN revision INTEGER NOT NULL DEFAULT 1; -- of the text; an edit raises it
ALTER TABLE memories ADD COLUMN tokens BLOB;           -- the embedder's token vectors: int8, 48 numbers each; NULL: none

-- For pages, newest first; seq is the last column of every index.
CREATE INDEX memories_by_time ON memories (tenant, space, owner, owner_id, created_at);
-- For the memories that one superseded.
CREATE INDEX memories_by_successor ON memories (tenant, space, owner, owner_id, superseded_by)
WHERE superseded_by IS NOT NULL;

-- `life` is chosen at random by the first write to a scope and never changes; erasing deletes the row. A write that started
-- in another life of its scope is dropped, because it started before the erasure. `epoch` starts at a random number as well,
-- so an index of one life does not pass for one of the next.
ALTER TABLE memory_scopes ADD COLUMN life INTEGER NOT NULL DEFAULT 0;
UPDATE memory_scopes SET life = abs(random() / 4), epoch = abs(random() / 4);

-- The texts that edits replaced.
CREATE TABLE memory_revisions (
    tenant      TEXT    NOT NULL,
    space       TEXT    NOT NULL,
    owner       TEXT    NOT NULL,
    owner_id    TEXT    NOT NULL,
    memory_seq  INTEGER NOT NULL REFERENCES memories (seq) ON DELETE CASCADE,
    revision    INTEGER NOT NULL,
    kind        TEXT    NOT NULL,
    content     TEXT    NOT NULL,
    replaced_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, space, owner, owner_id, memory_seq, revision)
) STRICT, WITHOUT ROWID;

CREATE INDEX memory_revisions_by_memory ON memory_revisions (memory_seq);

-- A message may be the source of several memories: itself, and those derived from it.
ALTER TABLE memory_sources RENAME TO memory_sources_001;
DROP INDEX memory_sources_by_memory;

CREATE TABLE memory_sources (
    tenant     TEXT    NOT NULL,
    space      TEXT    NOT NULL,
    owner      TEXT    NOT NULL,
    owner_id   TEXT    NOT NULL,
    message_id TEXT    NOT NULL,
    memory_seq INTEGER NOT NULL REFERENCES memories (seq) ON DELETE CASCADE,
    turn_id    TEXT,                             -- NULL if the caller gave none, and for derived memories
    position   INTEGER NOT NULL,                 -- among the turn's messages, or the derived memory's sources
    said_at    INTEGER NOT NULL,
    PRIMARY KEY (tenant, space, owner, owner_id, message_id, memory_seq),
    UNIQUE (tenant, space, owner, owner_id, turn_id, position)
) STRICT, WITHOUT ROWID;

INSERT INTO memory_sources SELECT * FROM memory_sources_001;
DROP TABLE memory_sources_001;

CREATE INDEX memory_sources_by_memory ON memory_sources (memory_seq);
