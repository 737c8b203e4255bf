"""Chapter 3: edits of the weights, what the best of them gain, and what they cost.

``experiments``  the chapter's experiments, as the catalogue has them
``measures``     what its tables measure of the claims
``moves``        families of heads, parts of them, factors
``upper``        lists through the layers that an edit reaches
``gains``        the best edits, on the selection half alone, and what they gain on lists that no choice saw
``above``        an untouched model and edited ones on the same tokens
``costs``        what they cost elsewhere
``baked``        the best of them in plain transformers
``removal``      one component removed from the movers' queries
"""
