"""Databases: contracts, SQLite, migrations, file locks."""
