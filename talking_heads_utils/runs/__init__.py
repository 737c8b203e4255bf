"""What runs a model and what it leaves behind.

``batches``    how much is run at once; half of it where memory runs out
``ends``       logits at a few positions of each prompt alone
``layers``     one layer's weights as the closed forms need them, with the norm's scale folded in
``recording``  one forward pass over a prompt set, kept as far as the closed forms need it
``suffix``     the last token alone through the upper layers, on keys and values of the prefix that are kept
"""
