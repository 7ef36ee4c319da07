-- A list of a rare state would read past the rows of all others. Tasks that only get submitted and complete are not in these.
CREATE INDEX tasks_of_owner_by_state ON tasks (tenant, agent, owner, state, status_at, id)
    WHERE hidden = 0 AND state NOT IN (1, 3);
CREATE INDEX tasks_of_agent_by_state ON tasks (tenant, agent, state, status_at, id)
    WHERE hidden = 0 AND state NOT IN (1, 3);
