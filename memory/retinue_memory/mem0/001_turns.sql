-- What was said and mem0 may not have made searchable yet. Times are microseconds since the epoch, UTC; text compares byte
-- for byte.

CREATE TABLE mem0_turns (
    space        TEXT    NOT NULL, -- the memory's name in the config
    scope        TEXT    NOT NULL, -- Scope.key
    turn         TEXT    NOT NULL,
    entity_field TEXT    NOT NULL, -- whose it is, as mem0 says it
    entity_id    TEXT    NOT NULL,
    state        TEXT    NOT NULL CHECK (state IN (
        'new',     -- not with mem0: it was never sent, or certainly not taken
        'sent',    -- a request is under way, or nobody knows what became of it
        'pending', -- mem0 has it and works on it: `event`
        'done',    -- searchable; the row keeps the turn from being sent again
        'failed'   -- mem0 has given it up for good; it is found by its words
    )),
    void         INTEGER NOT NULL, -- it was erased or forgotten since: what mem0 makes of it is deleted
    messages     TEXT    NOT NULL, -- JSON; '[]' once it is done or void
    about        TEXT    NOT NULL, -- JSON: what its metadata say
    infer        INTEGER NOT NULL,
    event        TEXT,
    tries        INTEGER NOT NULL, -- how often it was not taken; once pending, how often its event was asked about
    failures     INTEGER NOT NULL, -- events that failed
    since        INTEGER NOT NULL, -- when this state began
    due          INTEGER NOT NULL, -- when it is to be looked at next
    accepted_at  INTEGER NOT NULL,
    PRIMARY KEY (space, scope, turn)
) STRICT, WITHOUT ROWID;

CREATE INDEX mem0_turns_due ON mem0_turns (space, due) WHERE state IN ('new', 'sent', 'pending');

CREATE INDEX mem0_turns_done ON mem0_turns (space, accepted_at) WHERE state = 'done';
