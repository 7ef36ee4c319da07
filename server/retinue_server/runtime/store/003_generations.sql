-- The event log was written with every turn and read by nobody. A task's number of its last event is its generation.
DROP TABLE events;
ALTER TABLE tasks RENAME COLUMN seq TO generation;
UPDATE tasks SET generation = 1 WHERE generation = 0; -- a task counts from its acceptance
