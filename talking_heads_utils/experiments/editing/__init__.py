"""One chapter's experiments."""
