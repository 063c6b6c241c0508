"""A table of parameters as one object: its cells in the ledger, worked through by a pool or by detached units."""
