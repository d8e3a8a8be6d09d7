"""Settings as they are read, checked, explained and trusted."""
