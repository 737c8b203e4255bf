"""A model whose answer is known by construction: a whole one, with a planted circuit (``model``)."""
