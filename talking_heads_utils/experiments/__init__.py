"""The book's experiments: one folder a chapter, typed rows in and out, claims and their rules, the store.

``inhibition``    chapter 1: which heads inhibit the name mover, and through what
``positional``    chapter 2: where prompts sit in a subspace, and what moving them buys
``editing``       chapter 3: what edits of single components gain and cost
``icl``           chapter 4: functions and words learned in context
``catalogue``     all experiments, by chapter and name
``context``       a model on its way through the experiments: prompts, heads found, runs
``rows``          rows of tables with declared columns
``run``           one experiment after the other; what is finished is kept
``store``         finished experiments, what they are keyed by, and when they may be shown
``result_files``  a finished result as a table and its description
``source_sum``    the sum of the source that an experiment depends on
``claims``        the claims by id, what is measured for them, and what judges it
``rules``         verdict rules, frozen with their power
``power``         how often each rule says what, where the truth is known
``worlds``        planted worlds of effects and shares, and whole planted models through the experiments
``list_prompts``  lists that choose and lists that are scored, for chapters 2 and 3
``list_worlds``   tables of lists whose truth is known
``edit_worlds``   tables of removals and edits whose truth is known
``icl_worlds``    tables of tasks in context whose truth is known
``weight_worlds`` planted worlds of scores and weights; weights with the links of IOI's circuit planted in them
``planted_pair``     one planted channel between two heads
``verdicts``      what may be said of a claim, and the shape of a rule
``gate``          which tasks a model does well enough to be asked how
``prefixes``      which prefix a model does its tasks best behind
``corpus``        running text
``dealt``         random folds, and tests by draws, above all of heads whose names are dealt anew
``toys``          what the small models saw in training
"""
