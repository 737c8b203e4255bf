"""Chapter 4: what is learned in context, by which heads, and how belief grows with examples.

``experiments``  the chapter's experiments, as the catalogue has them
``measures``     what its tables measure of the claims
``study``        the chapter's experiments on one model and its task, as rows
``task``         what a model is asked: functions of numbers, or a relation of words
``functions``    functions y = a x + b, and the Bayes-optimal predictor that knows them
``pairing``      questions of functions, with and without examples
``words``        how well a model does each task of words
``whole``        functions whose answers are several tokens, scored whole
``scores``       scores of an answer: exact, near, of the right parity
``curves``       log-odds of the right answer by number of examples, and the law they follow
``answers``      answers of several tokens against other candidates
``ablations``    the last token under many ablations, and patched into another prompt
``patching``     the post's patching, layer by layer
``parts``        whether the task is done in parts
``redundancy``   removal in the order of effect, pairs, and who steps in
``additivity``   whether what one example contributes adds
``clusters``     intervals of means where prompts of one cluster are alike
``known``        two heads of which it is known what they do together
``post``         what the post's stored outputs show
"""
