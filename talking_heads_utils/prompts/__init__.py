"""Prompts with named positions: your own, and the tasks of the book."""
