"""What live agents decide, without Ray, clock or thread."""
