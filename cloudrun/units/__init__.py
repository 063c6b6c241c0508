"""Machines: launched, logged into, leased, and ended whatever happens."""
