-- The event log was written with every turn and read by nobody. A task's number of its last event is its generation.
DROP TABLE events;
ALTER TABLE tasks RENAME COLUMN seq TO generation;
