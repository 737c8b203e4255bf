"""Small models trained here, in which inhibition through a low-rank channel can arise by itself.

``spec``       what each of them is: sizes, which paths it may use, how long it is trained
``model``      a plain GPT-2 whose *paths* are constrained, not its content
``data``       IOI and Laundry List prompts on the fly, as token ids
``lists``      how a model of these prompts is trained: curriculum, loss, further rounds
``functions``  how a model of functions y = a x + b is
``loop``       steps, schedule, checkpoints that a stopped run goes on from
``card``       the card that a checkpoint ships with, out of its own log
"""
