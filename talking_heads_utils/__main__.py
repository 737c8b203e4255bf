"""``python -m talking_heads_utils``: see ``--help``."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read as torch loads: threads that wait leave their core to others

from talking_heads_utils.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
