-- Turns that were accepted, and that mem0 may not find yet. Times are microseconds since the epoch, UTC; text compares byte for
-- byte.

CREATE TABLE mem0_turns (
    space        TEXT    NOT NULL, -- the memory's name in the config
    scope        TEXT    NOT NULL, -- Scope.key
    turn         TEXT    NOT NULL,
    entity_field TEXT    NOT NULL, -- the owner, by mem0's name of the id
    entity_id    TEXT    NOT NULL,
    state        TEXT    NOT NULL CHECK (state IN (
        'new',     -- not sent, or certainly not taken
        'sent',    -- the request is in flight, or its outcome is unknown
        'pending', -- mem0 is working on it: `event`
        'done',    -- mem0 finds it; the row keeps the turn from being sent again
        'failed'   -- mem0 has given up; it is found by its words
    )),
    void         INTEGER NOT NULL, -- erased or forgotten since: what mem0 makes of it is deleted
    messages     TEXT    NOT NULL, -- JSON; '[]' if done or void
    about        TEXT    NOT NULL, -- JSON: see `records.metadata_of`
    infer        INTEGER NOT NULL,
    event        TEXT,
    tries        INTEGER NOT NULL, -- failed requests; while pending, polls of the event
    failures     INTEGER NOT NULL, -- failed events
    since        INTEGER NOT NULL, -- when the state was entered
    due          INTEGER NOT NULL, -- when it is processed next
    accepted_at  INTEGER NOT NULL,
    PRIMARY KEY (space, scope, turn)
) STRICT, WITHOUT ROWID;

CREATE INDEX mem0_turns_due ON mem0_turns (space, due) WHERE state IN ('new', 'sent', 'pending');

CREATE INDEX mem0_turns_done ON mem0_turns (space, accepted_at) WHERE state = 'done';
