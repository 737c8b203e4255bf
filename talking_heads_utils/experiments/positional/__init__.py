"""Chapter 2: where prompts sit in a subspace, what can be decoded there, and what moving them buys.

``experiments``    the chapter's experiments, as the catalogue has them
``measures``       what its tables measure of the claims
``coordinates``    points of prompts in a small subspace at ``end``
``decoding``       what coordinates tell of the answer, by list length
``steering``       moving the point by hand
``gains``          what steering buys, chosen on one half and scored on the other
``sweep``          a whole grid of settings, resumable and in shards
``sweep_results``  a finished sweep in two small files
"""
