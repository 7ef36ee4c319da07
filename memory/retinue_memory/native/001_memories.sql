-- The built-in memory's tables. Text compares byte for byte (BINARY is SQLite's default collation). Times are
-- microseconds since the epoch, UTC. A scope is (tenant, space, owner, owner_id), and leads every key.

-- The state of a scope. Every write raises `version`, and every row holds the version of its last change, so an index in
-- memory catches up by reading newer rows only. `epoch` is raised when rows are deleted: indexes are rebuilt.
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
    seq          INTEGER PRIMARY KEY AUTOINCREMENT, -- the order of writing and of an index; never reused
    tenant       TEXT    NOT NULL,
    space        TEXT    NOT NULL,
    owner        TEXT    NOT NULL,
    owner_id     TEXT    NOT NULL,
    id           TEXT    NOT NULL,
    version      INTEGER NOT NULL,               -- of the scope, when this row last changed
    kind         TEXT    NOT NULL,               -- a MemoryKind
    role         TEXT    NOT NULL,
    speaker      TEXT    NOT NULL,               -- '' if the message named none
    content      TEXT    NOT NULL,
    content_hash BLOB    NOT NULL,               -- sha256 of role, speaker and normalized content: the same words are stored once
    session_id   TEXT    NOT NULL,               -- where it was first said
    created_at   INTEGER NOT NULL,               -- when it was first said
    said_at      INTEGER NOT NULL,               -- when it was last said
    embedder     TEXT,                           -- the model of the vector; NULL: there is none
    dimensions   INTEGER,
    vector       BLOB,                           -- float32, little-endian, L2-normalised
    CHECK ((embedder IS NULL) = (vector IS NULL) AND (vector IS NULL) = (dimensions IS NULL)),
    CHECK (vector IS NULL OR length(vector) = 4 * dimensions),
    UNIQUE (tenant, space, owner, owner_id, id),
    UNIQUE (tenant, space, owner, owner_id, content_hash)
) STRICT;

CREATE INDEX memories_by_version ON memories (tenant, space, owner, owner_id, version);

-- The messages that a memory was derived from. A message is stored once, by its id and by its position in its turn.
CREATE TABLE memory_sources (
    tenant     TEXT    NOT NULL,
    space      TEXT    NOT NULL,
    owner      TEXT    NOT NULL,
    owner_id   TEXT    NOT NULL,
    message_id TEXT    NOT NULL,
    memory_seq INTEGER NOT NULL REFERENCES memories (seq) ON DELETE CASCADE,
    turn_id    TEXT,                             -- NULL if the caller gave none
    position   INTEGER NOT NULL,                 -- of the message among the turn's messages
    said_at    INTEGER NOT NULL,
    PRIMARY KEY (tenant, space, owner, owner_id, message_id),
    UNIQUE (tenant, space, owner, owner_id, turn_id, position)
) STRICT, WITHOUT ROWID;

CREATE INDEX memory_sources_by_memory ON memory_sources (memory_seq);
