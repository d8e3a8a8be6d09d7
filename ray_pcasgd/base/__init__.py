"""What knows nothing of training: settings, numbers, texts, files."""
