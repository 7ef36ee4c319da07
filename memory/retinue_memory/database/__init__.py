"""Databases: one writer with group commit, readers beside it, migrations."""
