"""Gathering policies of today against ASGD and K-sync, with workers of different speeds and alike or skewed shards."""
