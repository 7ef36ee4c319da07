-- What the owner of a memory can do with it, and what time does to it. No row of `memories` is rewritten: an old file is
-- brought up to this in a moment, however large it is.
--
-- A memory is *current* while valid_to IS NULL. The UNIQUE key over content_hash means: the same words are current once. So
-- a row that stops being current gets a content_hash that no words have (32 random bytes), and the same words may be said,
-- and hold, anew. What is quarantined is hashed apart from what is not.

ALTER TABLE memories ADD COLUMN valid_from INTEGER;     -- when it began to hold; NULL: when it was first said
ALTER TABLE memories ADD COLUMN valid_to INTEGER;       -- when it stopped to hold; NULL: it is current
ALTER TABLE memories ADD COLUMN superseded_by TEXT;     -- the id of the memory that took its place, where one did
ALTER TABLE memories ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0 CHECK (pinned IN (0, 1)); -- neither expires nor fades
ALTER TABLE memories ADD COLUMN expires_at INTEGER;     -- from then on it is found only with as_of; NULL: never
ALTER TABLE memories ADD COLUMN quarantined TEXT;       -- why it is kept from every prompt; NULL: it is not
ALTER TABLE memories ADD COLUMN revision INTEGER NOT NULL DEFAULT 1; -- of the text; raised by every edit
ALTER TABLE memories ADD COLUMN tokens BLOB;           -- the embedder's vectors of single words: int8, 48 to a word; NULL: none

-- Newest first, page by page; seq is the last column of every index.
CREATE INDEX memories_by_time ON memories (tenant, space, owner, owner_id, created_at);
-- What a memory superseded.
CREATE INDEX memories_by_successor ON memories (tenant, space, owner, owner_id, superseded_by)
WHERE superseded_by IS NOT NULL;

-- `life` is drawn at random when a scope is first written to and never changes; erasing deletes the row. A write that began
-- in another life of its scope is dropped: it began before the erasure. `epoch` starts from a random number as well, so an
-- index made in one life is not taken for one of the next.
ALTER TABLE memory_scopes ADD COLUMN life INTEGER NOT NULL DEFAULT 0;
UPDATE memory_scopes SET life = abs(random() / 4), epoch = abs(random() / 4);

-- The texts that edits replaced. `replaced_at`: when.
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

-- One message may be the source of several memories: of itself, word for word, and of what was drafted from it.
ALTER TABLE memory_sources RENAME TO memory_sources_001;
DROP INDEX memory_sources_by_memory;

CREATE TABLE memory_sources (
    tenant     TEXT    NOT NULL,
    space      TEXT    NOT NULL,
    owner      TEXT    NOT NULL,
    owner_id   TEXT    NOT NULL,
    message_id TEXT    NOT NULL,
    memory_seq INTEGER NOT NULL REFERENCES memories (seq) ON DELETE CASCADE,
    turn_id    TEXT,                             -- NULL where no idempotency by turn was asked for, and for drafts
    position   INTEGER NOT NULL,                 -- of the message among the turn's messages, or the draft's sources
    said_at    INTEGER NOT NULL,
    PRIMARY KEY (tenant, space, owner, owner_id, message_id, memory_seq),
    UNIQUE (tenant, space, owner, owner_id, turn_id, position)
) STRICT, WITHOUT ROWID;

INSERT INTO memory_sources SELECT * FROM memory_sources_001;
DROP TABLE memory_sources_001;

CREATE INDEX memory_sources_by_memory ON memory_sources (memory_seq);
