# make book    build the site             make test    run every test and every notebook
# make serve   look at it                 make clean   remove what was built (the environment stays)
# PYTHON=python3.12 chooses the interpreter of the environment; without a .venv it is made, once.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
SITE   := _build/html
PORT   ?= 8000

.PHONY: book test serve clean
.DEFAULT_GOAL := book

book: $(READY)
	$(BIN)/jupyter-book build . --toc book/_toc.yml -W -n --keep-going --quiet
	@echo "The book: $(abspath $(SITE))/index.html"

test: $(READY)
	$(BIN)/python -m pytest
	$(BIN)/python -m pytest --nbmake --nbmake-timeout=300 notebooks/

serve: book
	$(BIN)/python -m http.server --directory $(SITE) --bind 127.0.0.1 $(PORT)

clean:
	rm -rf _build

# Made again when the interpreter, the dependencies or their pins change; otherwise nothing is done.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else "Python 3.11 to 3.13 is needed, this is %d.%d: use make PYTHON=..." % v)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[book,test]'
	touch $@
