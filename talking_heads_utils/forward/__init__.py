"""What runs a model: one forward pass recorded, and parts of it run again under many interventions.

``engine``     a model's layers run one by one, on some positions, for many variants at once
``layers``     one layer's weights, ready for algebra
``recording``  one forward pass, and what a mover does after its query was changed, in closed form
``ends``       a model's own run, of logits at a few positions
"""
