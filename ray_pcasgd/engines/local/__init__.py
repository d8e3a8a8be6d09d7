"""One process, virtual time."""
