"""Values that several modules and the command line share. Importing this loads nothing."""

KINDS = "QKV"  # inputs of a reader: query, key, value
N_RANDOM = 512  # random directions behind each z
SEED = 0
N_ITEMS = 6  # of the lists of chapters 1 and 2
EARLY, FINAL = "early", "final"  # checkpoints of a training run, and their folders
