"""A run's folder: its files, states, models and lock."""
