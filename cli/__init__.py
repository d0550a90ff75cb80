"""The command line, `ict`: one file per command, which parses, resolves, prints, then calls a backend."""
