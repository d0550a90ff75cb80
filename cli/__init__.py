"""The command line, `ict`: one file a command; each parses, resolves, prints, then calls a backend."""
