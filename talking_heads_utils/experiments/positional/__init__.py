"""Chapter 2: a subspace that keeps which item of a list is left.

``experiments``  the chapter's experiments, as the catalogue has them
``measures``     what its tables measure of the claims
``subspace``     which components, and what they are compared with
``ends``         lists run once, and their last token from the movers' or the writers' layer on
``pairs``        recipients and donors
``decoding``     where lists sit in their coordinates; index or item, and in how many dimensions
``interchange``  a donor's coordinates put into a recipient; the best subspaces that can be learned, with their controls
``traversal``    the point moved by hand
``crowding``     distances beside errors; the cloud made wider or narrower
``conditional``  slopes within strata, wrong answers dealt anew
``order``        accuracy by index, beside plain strategies
``correction``   a constant for each list index, added to the logits
``steering``     gains of steering that is told nothing, beside a correction of the logits
``grid``         a grid of settings of directions added at the last token
``sweep``        the paper's whole grid, in chunks that resume, and the table of it
"""
