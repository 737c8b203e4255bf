"""One route of a benchmark in a process of its own: ``python -m talking_heads_utils.cli.benchmarks NAME ROUTE ...``."""

import sys

from talking_heads_utils.cli.benchmarks import go

if __name__ == "__main__":
    go(*sys.argv[1:])
