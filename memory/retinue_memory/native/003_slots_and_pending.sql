-- What a memory's claims are about: "home", "age", "is boss", ... (`lifecycle.keys`), so that a new claim finds what it
-- supersedes among any number of memories. Derived from the texts; a cache.
CREATE TABLE memory_slots (
    tenant     TEXT    NOT NULL,
    space      TEXT    NOT NULL,
    owner      TEXT    NOT NULL,
    owner_id   TEXT    NOT NULL,
    slot       TEXT    NOT NULL,
    memory_seq INTEGER NOT NULL REFERENCES memories (seq) ON DELETE CASCADE,
    PRIMARY KEY (tenant, space, owner, owner_id, slot, memory_seq)
) STRICT, WITHOUT ROWID;

CREATE INDEX memory_slots_by_memory ON memory_slots (memory_seq);

-- The version of the scope up to which slots are stored; those of older files and of imported rows follow with the next write.
ALTER TABLE memory_scopes ADD COLUMN slots_version INTEGER NOT NULL DEFAULT 0;

-- 1 while a model has yet to extract facts from this message (mode llm), else NULL.
ALTER TABLE memories ADD COLUMN pending INTEGER;

CREATE INDEX memories_pending ON memories (space, tenant, owner, owner_id, session_id) WHERE pending IS NOT NULL;
