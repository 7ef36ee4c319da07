-- Memory writes of one scope wait for each other, also while the first of them waits to be tried again.

-- The tenant, and the user or else the session: what a scope is made of. Worked out from the row, kept in the index alone.
ALTER TABLE memory_outbox ADD COLUMN scope TEXT GENERATED ALWAYS AS (
    json_array(
        COALESCE(json_extract(context, '$.tenant'), ''),
        json_extract(context, '$.user_id'),
        CASE WHEN json_extract(context, '$.user_id') IS NULL THEN json_extract(context, '$.session_id') END
    )
) VIRTUAL;
CREATE INDEX memory_outbox_of_scope ON memory_outbox (memory, scope, id, due_at) WHERE dead = 0;

-- Those that were given up, for whoever looks after them.
CREATE INDEX memory_outbox_dead ON memory_outbox (id) WHERE dead = 1;
