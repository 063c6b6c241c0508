"""The words everyone shares: errors, states, records, clock and the names in a run directory."""
