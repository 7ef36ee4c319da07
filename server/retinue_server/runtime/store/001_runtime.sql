-- Tasks, their turns, and the outboxes that finished turns fill.

-- A task as its owner sees it. `snapshot` is the protobuf `Task`; the other columns are for searching.
CREATE TABLE tasks (
    place       INTEGER PRIMARY KEY,         -- in order of creation: the id of its first turn
    id          TEXT NOT NULL UNIQUE,        -- ascending as well, so that indexes grow at their ends
    agent       TEXT NOT NULL,
    tenant      TEXT NOT NULL,
    owner       TEXT NOT NULL,               -- "user/alice", or "principal/x" if no user is named
    context_id  TEXT NOT NULL,
    state       INTEGER NOT NULL,            -- a2a.types.TaskState
    status_at   INTEGER NOT NULL,            -- microseconds since the epoch
    created_at  INTEGER NOT NULL,
    hidden      INTEGER NOT NULL DEFAULT 0,  -- 1: the agent answered with a message instead of a task
    memory      TEXT,                        -- state of its memory writes: pending, stored, failed; NULL: none
    seq         INTEGER NOT NULL DEFAULT 0,  -- the number of the last event in the snapshot
    snapshot    BLOB NOT NULL
) STRICT;
-- The state is in them so that a list of one state skips the rows of others. Lists read them backwards: new entries go to
-- their ends and fill page after page.
CREATE INDEX tasks_of_owner ON tasks (tenant, agent, owner, status_at, id, state) WHERE hidden = 0;
CREATE INDEX tasks_of_agent ON tasks (tenant, agent, status_at, id, state) WHERE hidden = 0;
CREATE INDEX tasks_hidden ON tasks (status_at) WHERE hidden = 1;
CREATE INDEX tasks_of_context ON tasks (context_id, agent, tenant);

-- Counters for the total of a list, kept by the triggers below: counting 100,000 rows takes longer than reading a page.
CREATE TABLE task_counts (
    tenant  TEXT NOT NULL,
    agent   TEXT NOT NULL,
    owner   TEXT NOT NULL,
    state   INTEGER NOT NULL,
    tasks   INTEGER NOT NULL,
    PRIMARY KEY (tenant, agent, owner, state)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER task_comes AFTER INSERT ON tasks WHEN new.hidden = 0 BEGIN
    INSERT INTO task_counts VALUES (new.tenant, new.agent, new.owner, new.state, 1)
    ON CONFLICT DO UPDATE SET tasks = tasks + 1;
END;
CREATE TRIGGER task_changes AFTER UPDATE OF state, hidden ON tasks
WHEN new.state <> old.state OR new.hidden <> old.hidden BEGIN
    UPDATE task_counts SET tasks = tasks - 1
    WHERE old.hidden = 0 AND tenant = old.tenant AND agent = old.agent AND owner = old.owner AND state = old.state;
    INSERT INTO task_counts SELECT new.tenant, new.agent, new.owner, new.state, 1 WHERE new.hidden = 0
    ON CONFLICT DO UPDATE SET tasks = tasks + 1;
END;
CREATE TRIGGER task_goes AFTER DELETE ON tasks BEGIN
    UPDATE task_counts SET tasks = tasks - 1
    WHERE old.hidden = 0 AND tenant = old.tenant AND agent = old.agent AND owner = old.owner AND state = old.state;
    DELETE FROM task_counts WHERE tenant = old.tenant AND agent = old.agent AND owner = old.owner AND tasks = 0;
END;

-- One message accepted for one task. Kept as long as its task, to recognise a replay of the message.
CREATE TABLE turns (
    id          INTEGER PRIMARY KEY,         -- in order of acceptance; VACUUM would renumber an implicit rowid
    task_id     TEXT NOT NULL,
    agent       TEXT NOT NULL,
    tenant      TEXT NOT NULL,
    owner       TEXT NOT NULL,
    context_id  TEXT NOT NULL,
    message_id  TEXT NOT NULL,
    digest      BLOB NOT NULL,               -- of the message's content: the same id with other content is refused
    request     BLOB NOT NULL,               -- protobuf SendMessageRequest with its ids and user filled in
    extensions  TEXT NOT NULL DEFAULT '',    -- requested A2A extensions, separated by spaces
    state       INTEGER NOT NULL,            -- 0 waiting, 1 running, 2 done; -1 has asked and may still continue
    attempt     INTEGER NOT NULL DEFAULT 1,  -- every write compares it: a stale attempt changes nothing
    crashes     INTEGER NOT NULL DEFAULT 0,  -- process deaths during it since its last committed step
    answer      BLOB,                        -- protobuf Message if the agent answered with one instead of a task
    follows     INTEGER NOT NULL             -- 1: a follow-up; 0: the first of its task, whose place is its id
) STRICT;
CREATE UNIQUE INDEX turns_of_message ON turns (message_id, owner, agent, tenant);
CREATE INDEX turns_that_follow ON turns (task_id) WHERE follows = 1;
CREATE INDEX turns_open ON turns (context_id, owner) WHERE state < 2;

-- The journal: results of models and tools. NULL: a step that was started and must not be repeated.
CREATE TABLE steps (
    turn_id  INTEGER NOT NULL,
    key      TEXT NOT NULL,
    result   TEXT,
    PRIMARY KEY (turn_id, key)
) STRICT, WITHOUT ROWID;

-- Events of a task, coalesced: each row holds those up to `seq` as StreamResponse messages, each behind its length in four
-- bytes. Dropped by 003.
CREATE TABLE events (
    task_id  TEXT NOT NULL,
    seq      INTEGER NOT NULL,
    payload  BLOB NOT NULL,
    PRIMARY KEY (task_id, seq)
) STRICT, WITHOUT ROWID;

-- Memory writes that steps and turns left.
CREATE TABLE memory_outbox (
    id        INTEGER PRIMARY KEY,
    task_id   TEXT NOT NULL,
    turn_id   INTEGER NOT NULL,
    memory    TEXT NOT NULL,                 -- the memory's name in the config
    context   TEXT NOT NULL,                 -- InvocationContext as JSON
    messages  TEXT NOT NULL,                 -- Messages as JSON
    tries     INTEGER NOT NULL DEFAULT 0,
    due_at    INTEGER NOT NULL,              -- microseconds since the epoch
    dead      INTEGER NOT NULL DEFAULT 0,    -- 1: given up
    problem   TEXT,
    -- The parts of a scope: the tenant, and the user or else the session. Computed from the row, stored in the index only.
    scope     TEXT GENERATED ALWAYS AS (
        json_array(
            COALESCE(json_extract(context, '$.tenant'), ''),
            json_extract(context, '$.user_id'),
            CASE WHEN json_extract(context, '$.user_id') IS NULL THEN json_extract(context, '$.session_id') END
        )
    ) VIRTUAL
) STRICT;
CREATE INDEX memory_outbox_due ON memory_outbox (memory, due_at) WHERE dead = 0;
CREATE INDEX memory_outbox_of_task ON memory_outbox (task_id);
-- Writes of one scope wait for each other, also while the first of them waits for its retry.
CREATE INDEX memory_outbox_of_scope ON memory_outbox (memory, scope, id, due_at) WHERE dead = 0;
-- Given-up writes, for operators.
CREATE INDEX memory_outbox_dead ON memory_outbox (id) WHERE dead = 1;

CREATE TABLE push_configs (
    task_id  TEXT NOT NULL,
    id       TEXT NOT NULL,
    config   BLOB NOT NULL,                  -- protobuf TaskPushNotificationConfig
    PRIMARY KEY (task_id, id)
) STRICT, WITHOUT ROWID;

-- Push deliveries of events, one for each of the task's configs; sent in order of id for each config.
CREATE TABLE push_outbox (
    id         INTEGER PRIMARY KEY,
    task_id    TEXT NOT NULL,
    config_id  TEXT NOT NULL,
    payload    BLOB NOT NULL,                -- protobuf StreamResponse
    tries      INTEGER NOT NULL DEFAULT 0,
    due_at     INTEGER NOT NULL,
    dead       INTEGER NOT NULL DEFAULT 0,
    problem    TEXT
) STRICT;
CREATE INDEX push_outbox_of_task ON push_outbox (task_id, config_id);
CREATE INDEX push_outbox_due ON push_outbox (due_at) WHERE dead = 0;
