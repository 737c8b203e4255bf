"""In-context learning of y = a x + b, or of a task of words: chapter 4. Modules import downwards in this list, not up.

``claims``      the post's claims and their verdicts, by fixed rules
``whole``       answers of several tokens, scored whole
``study``       the chapter's experiments on one model, as tables
``subject``     a model and what it is asked: numbers, or a task of words that it can do
``words``       how well a model does every task of words, beside controls
``parts``       layers taken out, probes, attention to earlier answers
``additivity``  what one example does at the last token, and whether it adds
``curves``      log-odds by the number of examples, and the laws they are held against
``known``       two heads whose redundancy is known
``redundancy``  removal in the order of effect, pairs, and who steps in
``engine``      the last token under many ablations at once, and patched into another prompt
``ablation``    what is taken out
``scores``      exact, distance, parity, "about a x", apart
``post``        what the post's stored outputs show
``prompts``     examples and a question for any tokenizer; the post's own
"""
