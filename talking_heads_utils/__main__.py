"""``python -m talking_heads_utils``: see ``--help``."""

from talking_heads_utils.commands import main

if __name__ == "__main__":
    raise SystemExit(main())
