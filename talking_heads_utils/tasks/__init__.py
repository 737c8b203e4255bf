"""The tasks: prompts with named positions for any tokenizer, and the metrics that score them.

``prompts``   :class:`~talking_heads_utils.tasks.prompts.PromptSet`: tokens, named positions, answers, recipe
``prefix``    what stands in front of a prompt: what the model's tokenizer adds by itself
``words``     names, places, objects and wordings out of ``data/prompts``, kept where they are one token
``ioi``       indirect object identification, with named counterfactuals
``laundry``   the Laundry List: which item of a list has not been named again?
``functions`` functions y = a x + b: a family, its labels' noise, and the exact Bayesian reader over it
``relations`` in-context tasks of words: lines ``x -> y`` of one relation, with controls and two halves
``halves``    the half that choices are made on, the half that scores them, and folds
``metrics``   accuracy, logit difference, attention to a named position, paired intervals
"""
