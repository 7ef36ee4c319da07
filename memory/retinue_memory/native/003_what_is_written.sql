-- What a current memory claims can be looked up by what it is about: "home", "age", "is boss", ... (`lifecycle.keys`), so a
-- new claim finds what it takes the place of among any number of memories. Made from the texts, and never the truth.
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

-- Up to which version of the scope the texts were read for it: rows of older files, and imported ones, are read at the next
-- write.
ALTER TABLE memory_scopes ADD COLUMN slots_version INTEGER NOT NULL DEFAULT 0;

-- 1 while a model has yet to draw facts from this message (mode llm); NULL: it has, or never will.
ALTER TABLE memories ADD COLUMN pending INTEGER;

CREATE INDEX memories_pending ON memories (space, tenant, owner, owner_id, session_id) WHERE pending IS NOT NULL;
