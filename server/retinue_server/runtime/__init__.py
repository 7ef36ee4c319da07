"""The turn runtime: accepted turns are stored, run in order, resumed after a crash, and finished once."""
