"""Small models whose paths are constrained so that what they solve a task by can be found, trained from nothing.

``spec``       what each model may do, and how long it is trained
``model``      a GPT-2 with constrained paths
``lists``      prompts, loss and curriculum of models of IOI and Laundry Lists
``functions``  the same for models of functions learned in context
``loop``       steps, rounds, checkpoints, resuming
``card``       the card that a model ships with
``seeds``      what varies between runs of one recipe
"""
