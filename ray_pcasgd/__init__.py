"""Training a model across machines whose news of each other is late."""
