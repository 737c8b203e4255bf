"""Prompt sets: texts of one's own, and the tasks of the book.

``texts``      ``from_texts``: texts, right and wrong answers, and the words whose positions matter
``sets``       :class:`~talking_heads_utils.prompts.sets.PromptSet`: tokens whose positions have names
``encoding``   from texts with named spans to tokens with named positions
``halves``     the half that choices are made on, the half that scores them, and folds
``ioi``        indirect object identification
``lists``      the Laundry List
``questions``  examples ``(x, y)`` and a question, for any tokenizer
``relations``  in-context tasks of words
``words``      the words that prompts are made of, and which are one token
``prefix``     what stands in front of a prompt
``toy``        word-level tokenizers of models that know few words
"""

from talking_heads_utils.prompts.texts import from_texts

__all__ = ["from_texts"]
