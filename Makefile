# `make book` renders the book, `make check` and `make test` check it; `make` alone lists the targets.

PYTHON        ?= python3
PROFILE       ?= quick
JOBS          ?= 2
SOLUTIONS     ?= yes
VENV_OPTIONS  ?=
PIP_OPTIONS   ?=
TORCH_OPTIONS ?=
# A machine's own torch serves when the environment can see it; otherwise the locked one is installed.
TORCH_SPEC    ?= $(if $(findstring system-site,$(VENV_OPTIONS)),$(shell sed -n 's/^ *"\(torch[^"]*\)".*/\1/p' pyproject.toml),$(shell grep '^torch==' requirements.lock))

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_OPTIONS)
# Processes side by side with one thread each: threads of two processes would spin while they wait for each other.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
# Byte code is written even where that is switched off: a hundred processes and kernels read the same modules.
# One process a file, since a chapter's cells share a kernel; tests/conftest.py puts the long files first.
PYTEST := $(ONE_THREAD) PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses=$(JOBS) --dist=loadfile --no-loadscope-reorder
# What the site is made of; folders are listed too, so that a removed page is noticed.
PAGES := $(shell find _config.yml _toc.yml book/. \( -name __pycache__ -o -name .ipynb_checkpoints -o -name _tools \) -prune -o -print)

# The edition without solutions is built from a copy of the book, beside the normal one.
COPY  := _build/without-solutions
BUILT := $(if $(filter no,$(SOLUTIONS)),$(COPY)/)_build
ifeq ($(filter yes no,$(SOLUTIONS)),)
$(error SOLUTIONS: got '$(SOLUTIONS)'; allowed: yes, no)
endif

.PHONY: help book lint check test lab chapters slides assignments bench clean
.DELETE_ON_ERROR:

help:
	@echo "make book      build the site and say where index.html is (SOLUTIONS=no: an edition without them)"
	@echo "make lint      style, types, import order"
	@echo "make check     lint, and every test that is not slow; a minute or two"
	@echo "make test      lint, all tests, every chapter re-run, site checks"
	@echo "make lab       open the chapters in JupyterLab"
	@echo "make chapters  re-execute the chapters that changed (PROFILE=quick; FORCE=1 for all)"
	@echo "make slides    slides of each part, in dist/slides"
	@echo "make assignments  students' notebooks, the package for them, tests, solutions with figures, in dist/assignments"
	@echo "make bench     speed and memory beside other libraries"
	@echo "make clean     remove what was built; keeps .venv"
	@echo "Each creates .venv when it is missing. Options: see README.md, \"Installing\"."

.venv/.locked: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $(PYTHON) is missing or older than 3.11. Install Python 3.11 or newer, or name it: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Installing $$(grep -c == $<) pinned packages into .venv (a few minutes the first time) ..."
	@$(PYTHON) -m venv $(VENV_OPTIONS) .venv || { echo "make: no virtual environment could be made. On Debian and Ubuntu: apt-get install python3-venv, then again." >&2; exit 1; }
	@$(PIP) $(TORCH_OPTIONS) '$(TORCH_SPEC)' && grep -v '^torch==' $< > .venv/without-torch.txt && $(PIP) -r .venv/without-torch.txt \
		|| { echo "make: the installation stopped (see above). It needs the network and 2 GB of disk once; run the same command again and it goes on." >&2; exit 1; }
	@touch $@

.venv/.installed: .venv/.locked pyproject.toml
	@echo "Installing this repository's package into .venv ..."
	@$(BIN)/python -c "import matplotlib.font_manager" 2> .venv/fonts.log # else the first chapter would store its message
	@$(PIP) --no-deps --no-build-isolation --no-index --editable . || { echo "make: the package did not install; is pyproject.toml sound? If .venv is damaged: rm -rf .venv" >&2; exit 1; }
	@touch $@

# Always all pages: an incremental build would not repeat the warnings of a page that it does not read again.
define build_site
	@mkdir -p $(@D)
	@$(BIN)/jupyter-book build -W -n --keep-going --all --quiet $(1) > $(@D)/site.log || { cat $(@D)/site.log; echo "make: the site has the faults named above; mend them and run again." >&2; exit 1; }
	@touch $@
endef

_build/.site: .venv/.installed $(PAGES)
	@echo "Building the site ..."
	$(call build_site,.)

$(COPY)/_build/.site: .venv/.installed $(PAGES) book/_tools/without_solutions.py
	@echo "Building the site without solutions ..."
	@$(BIN)/python book/_tools/without_solutions.py $(COPY)
	$(call build_site,$(COPY))

book: $(BUILT)/.site
	@echo "The book is at file://$(CURDIR)/$(BUILT)/html/index.html"

lint: .venv/.installed
	@echo "Checking style (ruff) ..."
	@$(BIN)/ruff check --quiet . || { echo "make: ruff found the faults above; many mend themselves: .venv/bin/ruff check --fix ." >&2; exit 1; }
	@$(BIN)/ruff format --quiet --check . || { echo "make: some files are not formatted; run: .venv/bin/ruff format ." >&2; exit 1; }
	@echo "Checking types (mypy) ..."
	@$(BIN)/mypy --no-error-summary || { echo "make: mend the types named above." >&2; exit 1; }
	@echo "Checking the direction of imports (import-linter) ..."
	@$(BIN)/lint-imports > .venv/imports.log || { cat .venv/imports.log; echo "make: imports go one way only; the order is in pyproject.toml, [tool.importlinter]." >&2; exit 1; }

check: lint
	@echo "Running the tests that are not slow (pytest, $(JOBS) processes) ..."
	@$(PYTEST) tests companion -m 'not slow and not browser' --durations=10 --durations-min=3 \
		|| { echo "make: a test failed (see above)." >&2; exit 1; }

test: .venv/.installed
	@$(MAKE) --no-print-directory --jobs=$(JOBS) lint _build/.site $(COPY)/_build/.site # side by side; none uses two cores
	@echo "Running the tests, every chapter and the site checks (pytest, $(JOBS) processes) ..."
	@$(PYTEST) tests companion book --nbval --nbval-current-env --nbval-cell-timeout=600 --nbval-sanitize-with=book/_tools/nbval-sanitize.cfg --ignore-glob='*/.ipynb_checkpoints/*' \
		|| { echo "make: a test failed (see above). Stale chapters are run again by: make chapters" >&2; exit 1; }

lab: .venv/.installed
	@echo "Opening the chapters in JupyterLab; stop it with Ctrl-C ..."
	@$(BIN)/jupyter lab book

chapters: .venv/.installed
	@echo "Re-executing the chapters whose code, stored results or profile changed (profile $(PROFILE)) ..."
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/python book/_tools/run_chapters.py --profile '$(PROFILE)' $(if $(FORCE),--force)

slides: .venv/.installed
	@echo "Making the slides of each part from its chapters ..."
	@PYTHONPATH=book/_ext $(BIN)/python book/_tools/slides.py

assignments: .venv/.installed
	@echo "Making the students' notebooks of the assignments, the package's wheel, the archives of tests, and the solutions (FORCE=1: all anew) ..."
	@$(BIN)/companion assign
	@$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index --wheel-dir dist/assignments .
	@PYTHONPATH=book/_ext $(BIN)/python book/_tools/solutions.py $(if $(FORCE),--force)

bench: .venv/.installed
	@echo "Measuring speed and memory beside other libraries (benchmarks/); a few minutes ..."
	@$(PIP) --no-deps -r benchmarks/requirements.txt || { echo "make: the other libraries did not install; this target needs the network once." >&2; exit 1; }
	@$(BIN)/python -m benchmarks

clean:
	@echo "Removing the built site and caches; .venv stays (rm -rf .venv removes it) ..."
	@rm -rf _build .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
	@find book companion tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
