"""State: one SQLite file. `tables` is the schema, `store` opens it, then one file of queries a noun."""
