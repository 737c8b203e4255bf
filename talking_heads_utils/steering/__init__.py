"""Moving the residual stream at the last token along write directions of chosen components.

``engine``   settings on prompts: attention of movers over the items, logits of the candidates
``sweep``    a whole grid in chunks that are written whole, resumed, split over machines and merged
``results``  a finished sweep in two small files, which is what the book keeps and reads
"""
