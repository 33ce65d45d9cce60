# Everything runs in .venv, against the installed package: what is tested is what users install. Only `make quick` runs
# in .venv-quick, against the checkout, where there is nothing that a test would have to ask for by a mark.
# GNU make 3.81 (macOS) is enough.

PYTHON ?= python3
ARGS ?=

VENV := .venv
QUICK := .venv-quick
RUN := $(VENV)/bin
PIP := python -m pip --quiet --disable-pip-version-check
PYTEST := pytest --numprocesses 2 --dist worksteal
# Without bytecode pytest rewrites every assert of the tests each time: 9 s to collect them in place of 4.
export PYTHONDONTWRITEBYTECODE :=

# Folders are among the sources: their times change when a file is removed or renamed.
SOURCES := $(shell find harness model dumps reports -name __pycache__ -prune -o ! -name '.*' -print) \
	pyproject.toml README.md LICENSE

# What earlier builds left in build/ and the egg-info would be packed again: both go before each build and after it.
LEFTOVERS := build firstdiff.egg-info
# The installed package goes before its successor comes: numba's caches may lie among its files.
BEFORE = rm -rf $(LEFTOVERS) $(VENV)/lib/python*/site-packages/firstdiff

# Without an installed package beside it (it was made editable, or an installation failed) the stamp says nothing.
$(shell ls $(VENV)/lib/python*/site-packages/firstdiff/__init__.py >/dev/null 2>&1 || rm -f $(VENV)/package.stamp)

.NOTPARALLEL:
.PHONY: help demo quick test sweeps lint bench bench-large bench-diagnosis bench-random bench-trust bench-graph bench-probes bench-public clean

help:
	@echo 'make demo    a real model, a planted bug, the whole report'
	@echo 'make quick   the tests that need no llama.cpp, model, compiler, browser or torch: a minute'
	@echo 'make test    all tests, two at a time; make test ARGS="-k rope" some of them, ARGS="-n0 --pdb" one at a time'
	@echo 'make sweeps  all tests, and of those that ask the same of very many cases all of these: half an hour'
	@echo 'make lint    ruff and mypy'
	@echo 'make bench   benchmarks'
	@echo 'make bench-large   8 billion parameters, a mixture of experts and 2,048 tokens, beside llama.cpp'
	@echo 'make bench-diagnosis   every hypothesis planted everywhere (hours on two cores), clean engines, smallest changes seen'
	@echo 'make bench-random   thousands of random faults that no table has, and the faults of the table told without it'
	@echo 'make bench-trust   thousands of dumps of right engines, of engines with one fault, and faulty dumps'
	@echo 'make bench-graph   tiny models of all architectures judged by llama.cpp'"'"'s graph (half an hour), single faults in them, its cost'
	@echo 'make bench-probes   faults planted in engines that only give logits, right ones, and the suite on the C engine'"'"'s bugs'
	@echo 'make bench-public   engines of other people, installed below .venv-public, run through the suite (needs clang)'
	@echo 'make clean   remove what make made, .venv, .venv-quick and .venv-public too'

demo: $(VENV)/demo.stamp $(VENV)/package.stamp
	@$(RUN)/firstdiff demo $(ARGS)

quick: $(QUICK)/stamp
	@$(QUICK)/bin/$(PYTEST) --quick --durations 5 --durations-min 1 $(ARGS)

test: $(VENV)/test.stamp $(VENV)/package.stamp
	@$(RUN)/$(PYTEST) $(ARGS)

sweeps: $(VENV)/test.stamp $(VENV)/package.stamp
	@$(RUN)/$(PYTEST) --sweeps $(ARGS)

lint: $(VENV)/lint.stamp $(VENV)/package.stamp
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy -p firstdiff

bench: $(VENV)/test.stamp $(VENV)/package.stamp
	@$(RUN)/python tests/bench $(ARGS)

bench-large: $(VENV)/test.stamp $(VENV)/package.stamp
	@$(RUN)/python tests/bench/large.py --history tests/data/bench.txt $(ARGS)
	@$(RUN)/python tests/bench/gate_jobs.py

bench-diagnosis: $(VENV)/test.stamp $(VENV)/package.stamp
	@$(RUN)/python tests/bench/diagnosis.py $(ARGS)
	@$(RUN)/python tests/bench/false_alarms.py
	@$(RUN)/python tests/bench/sensitivity.py

bench-random: $(VENV)/test.stamp $(VENV)/package.stamp
	@$(RUN)/python tests/bench/random_faults.py $(ARGS)
	@$(RUN)/python tests/bench/random_faults.py --table $(ARGS)

bench-trust: $(VENV)/test.stamp $(VENV)/package.stamp
	@$(RUN)/python tests/bench/trust.py $(ARGS)

bench-probes: $(VENV)/test.stamp $(VENV)/package.stamp
	@$(RUN)/python tests/bench/black_boxes.py $(ARGS)
	@$(RUN)/python tests/bench/black_boxes.py --engine c
	@$(RUN)/python tests/bench/clean_boxes.py
	@$(RUN)/python tests/bench/conformance.py

bench-public: $(VENV)/test.stamp $(VENV)/package.stamp
	@$(RUN)/python tests/bench/public_engines.py $(ARGS)

bench-graph: $(VENV)/test.stamp $(VENV)/package.stamp
	@$(RUN)/python tests/bench/architectures.py
	@$(RUN)/python tests/bench/graph_faults.py
	@$(RUN)/python tests/bench/graph_cost.py

clean:
	rm -rf $(VENV) $(QUICK) .venv-public $(LEFTOVERS) dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find harness model dumps reports tests -name __pycache__ -prune -exec rm -rf {} +

$(RUN)/pip $(QUICK)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "firstdiff needs Python 3.11 or later, and $(PYTHON) is not: name one that is, as in make demo PYTHON=python3.12" >&2; \
	  exit 1; }
	@$(PYTHON) -m venv $(@:/bin/pip=)

# An extra: its dependencies, and the package. A stamp bears the time at which its installation began, so that a
# source saved meanwhile is newer than the stamp.
$(VENV)/%.stamp: pyproject.toml | $(RUN)/pip
	@case $* in demo | test) test -d "$$(echo $(VENV)/lib/python*/site-packages/llama_cpp)" || \
	  echo 'Installing. The first time, building llama.cpp takes some 5 minutes.';; esac
	@touch $@.new
	@$(BEFORE)
	@$(RUN)/$(PIP) install '.[$*]'
	@rm -rf $(LEFTOVERS)
	@cp -p $@.new $(VENV)/package.stamp
	@mv $@.new $@

# The package alone, where a source is newer than what is installed.
$(VENV)/package.stamp: $(SOURCES) | $(RUN)/pip
	@touch $@.new
	@$(BEFORE)
	@$(RUN)/$(PIP) install --no-deps --force-reinstall .
	@rm -rf $(LEFTOVERS)
	@mv $@.new $@

# Editable: a source that changes is not installed again.
$(QUICK)/stamp: pyproject.toml | $(QUICK)/bin/pip
	@touch $@.new
	@$(QUICK)/bin/$(PIP) install --editable '.[quick]'
	@rm -rf $(LEFTOVERS)
	@mv $@.new $@
