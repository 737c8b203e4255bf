"""What runs a model: one forward pass recorded, and parts of it run again under many interventions.

``engine``       a model's layers run one by one, on some positions, for many variants at once
``layers``       one layer's weights, ready for algebra
``recording``    one forward pass, kept as far as the closed forms need it
``closed_form``  what a mover does after its query or its keys were changed, in closed form
``ends``         logits at a few positions of each prompt
"""
