"""Channels between heads, read from weights alone: single components, and who reads what they write.

``components``    SVD of a head through its factors
``composition``   how strongly a component is read by a later head, beside its null
``rotary``        the same at a distance, for models with rotary positions
``scores``        the finished scores of a model, to look up, rank and compare
``tables``        scores as parquet, streamed
``streaming``     the same table from a checkpoint that does not fit in memory
``links``         the known links of a circuit, looked up in the scores
``quantised``     how far quantising the weights moves the scores
``known_answer``  a pair of heads with one planted channel
"""
