"""Chapter 4: what is learned in context, by which heads, and how belief grows with examples.

``asked``        what a model is asked, with twins: the same questions after another task's examples
``tasks``        which tasks it can do and how well, beside controls
``words``        rows of how well it does them
``whole``        functions whose answers are several tokens, scored whole
``functions``    functions y = a x + b
``swaps``        heads and MLPs at the values of the twin's run, at the last token or everywhere
``choice``       which heads, by what they do to a twin
``redundancy``   what heads do alone and together
``known``        planted heads of which that is known
``clusters``     intervals where prompts with one right answer are alike, and over tasks
``backups``      what others recover of a head's direct effect
``sufficient``   how few heads suffice
``patching``     the post's patching, layer by layer, and layers taken out
``post``         the post's own two prompts, and what its outputs show
``sequences``    two kinds of word with labels that are swapped and flipped
``evidence``     belief in them by signed evidence
``readers``      what belief may follow instead
``additivity``   whether what examples contribute adds
``parts``        whether the task is done in parts
``measures``     what its tables measure of the claims
``experiments``  the chapter's experiments, as the catalogue has them
"""
