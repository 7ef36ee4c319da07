-- `life` is called generation, like everywhere else. It is chosen at random by the first write to a scope and never changes;
-- an erasure deletes the row, and a write that started in an earlier generation is dropped.
ALTER TABLE memory_scopes RENAME COLUMN life TO generation;
