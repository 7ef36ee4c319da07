-- The built-in memory's tables. Text compares byte for byte (BINARY is SQLite's default collation). Times are
-- microseconds since the epoch, UTC. A scope is (tenant, space, owner, owner_id), and leads every key.

-- What is known of a scope: `version` grows with every write, and a row says at which version it last changed, so an index
-- in memory catches up by reading only what is newer. `epoch` grows where rows were taken away: indexes start over.
CREATE TABLE memory_scopes (
    tenant    TEXT    NOT NULL,
    space     TEXT    NOT NULL,
    owner     TEXT    NOT NULL CHECK (owner IN ('user', 'session')),
    owner_id  TEXT    NOT NULL,
    version   INTEGER NOT NULL,
    epoch     INTEGER NOT NULL,
    PRIMARY KEY (tenant, space, owner, owner_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE memories (
    seq          INTEGER PRIMARY KEY AUTOINCREMENT, -- the order of writing, and so of an index; never used twice
    tenant       TEXT    NOT NULL,
    space        TEXT    NOT NULL,
    owner        TEXT    NOT NULL,
    owner_id     TEXT    NOT NULL,
    id           TEXT    NOT NULL,
    version      INTEGER NOT NULL,               -- of the scope, when this row last changed
    kind         TEXT    NOT NULL,               -- a MemoryKind
    role         TEXT    NOT NULL,
    speaker      TEXT    NOT NULL,               -- '' where the message named none
    content      TEXT    NOT NULL,
    content_hash BLOB    NOT NULL,               -- sha256 of role, speaker and normalised content: said twice, stored once
    session_id   TEXT    NOT NULL,               -- where it was first said
    created_at   INTEGER NOT NULL,               -- when it was first said
    said_at      INTEGER NOT NULL,               -- when it was last said
    embedder     TEXT,                           -- the model that made the vector; NULL: there is none
    dimensions   INTEGER,
    vector       BLOB,                           -- float32, little-endian, L2-normalised
    CHECK ((embedder IS NULL) = (vector IS NULL) AND (vector IS NULL) = (dimensions IS NULL)),
    CHECK (vector IS NULL OR length(vector) = 4 * dimensions),
    UNIQUE (tenant, space, owner, owner_id, id),
    UNIQUE (tenant, space, owner, owner_id, content_hash)
) STRICT;

CREATE INDEX memories_by_version ON memories (tenant, space, owner, owner_id, version);

-- The messages that a memory was made from. A message is taken once: by its id, and by its place in its turn.
CREATE TABLE memory_sources (
    tenant     TEXT    NOT NULL,
    space      TEXT    NOT NULL,
    owner      TEXT    NOT NULL,
    owner_id   TEXT    NOT NULL,
    message_id TEXT    NOT NULL,
    memory_seq INTEGER NOT NULL REFERENCES memories (seq) ON DELETE CASCADE,
    turn_id    TEXT,                             -- NULL where the caller asked for no idempotency by turn
    position   INTEGER NOT NULL,                 -- of the message among the turn's messages
    said_at    INTEGER NOT NULL,
    PRIMARY KEY (tenant, space, owner, owner_id, message_id),
    UNIQUE (tenant, space, owner, owner_id, turn_id, position)
) STRICT, WITHOUT ROWID;

CREATE INDEX memory_sources_by_memory ON memory_sources (memory_seq);
