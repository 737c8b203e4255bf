"""Chapter 4: what is learned in context, by which heads, and how belief grows with examples.

``asked``        what a model is asked, with twins: the same questions after another task's examples
``tasks``        which tasks it can do, beside controls
``words``        how well a model does each task of words
``whole``        functions whose answers are several tokens, scored whole; ``answers`` scores them
``functions``    functions y = a x + b
``swaps``        heads and MLPs at the values of the twin's run, at the last token or everywhere
``choice``       which heads, by what they do to a twin
``redundancy``   what heads do alone and together; ``known`` has planted ones of which it is known
``backups``      what others recover of a head's direct effect
``sufficient``   how few heads suffice
``patching``     the post's patching, layer by layer, and layers taken out; ``post`` has what its outputs show
``evidence``     labels that are swapped and flipped: belief by signed evidence
``additivity``   whether what examples contribute adds
``parts``        whether the task is done in parts
``measures``     what its tables measure of the claims
``experiments``  the chapter's experiments, as the catalogue has them
"""
