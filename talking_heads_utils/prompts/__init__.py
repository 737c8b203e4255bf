"""Prompt sets: texts of one's own, and the tasks of the book."""

from talking_heads_utils.prompts.texts import from_texts

__all__ = ["from_texts"]
