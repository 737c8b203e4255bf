"""Models whose answer is known by construction."""
