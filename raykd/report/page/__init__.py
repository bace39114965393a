"""HTML page of a run: figures, tables and numbers in a single file that needs no network."""
