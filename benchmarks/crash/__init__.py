"""The crash suite: kill the server at random moments under load, and hold what is left to every promise it made."""
