"""Chapter 3: edits of single components, what the best of them gain, and what they cost.

``experiments``  the chapter's experiments, as the catalogue has them
``measures``     what its tables measure of the claims
``components``   the components that edits scale, and random ones beside them
``upper``        prompts through the layers that an edit reaches, with gradients
``removal``      removing components, and scaling them one or two at a time
``search``       scales by one objective, over a grid and along its gradient
``gains``        what the best edits gain on prompts that no choice saw
``harm``         what an edit changes that it was not made for
"""
