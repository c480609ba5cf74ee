# make setup   creates .venv with all packages for running
# make test    adds the packages for testing; runs lint, type checks and tests
# make demo    runs the whole experiment on the micro-world
# make peers   compares the logits of our exports with those of transformers 4, in .venv-peers
# make fuzz    reads 2,000 damaged files and replies; each must work or be refused in a sentence
# make lint    checks formatting, lint and types only
# make clean   removes .venv and the tools' caches (never runs/)
#
#   PYTHON=python3.12      the interpreter; default: the one of .venv, otherwise the first of
#                          python3.11 and python3.12 that runs
#   PYTEST_ARGS="-n 4 -x"  arguments for pytest; default: -n 2 --dist loadfile

.PHONY: setup setup-test demo test fuzz peers lint clean
.DELETE_ON_ERROR:

PYTEST_ARGS ?= -n 2 --dist loadfile
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_USE_PEP517 := 1

ifneq ($(MAKECMDGOALS),clean)
tag = $(shell $(1) -c 'import pip, sys; print("py%d%d" % sys.version_info[:2])' 2>/dev/null)
VENV_TAG := $(call tag,.venv/bin/python)
ifdef PYTHON
    TAG := $(call tag,$(PYTHON))
else
    PYTHON := $(shell for p in python3.11 python3.12; do $$p -c '' 2>/dev/null && echo $$p && break; done)
    TAG := $(or $(VENV_TAG),$(if $(PYTHON),$(call tag,$(PYTHON))))
endif
ifeq ($(wildcard requirements/run-$(or $(TAG),none).txt),)
    $(error Python 3.11 or 3.12 with pip is needed, and $(or $(PYTHON),neither python3.11 nor python3.12) \
    $(if $(TAG),is $(TAG),does not run here): name one, as in  make demo PYTHON=/usr/bin/python3.12)
endif
endif

RUN := .venv/run-$(TAG)
TEST := .venv/test-$(TAG)

setup: $(RUN)
setup-test: $(TEST)

demo: $(RUN)
	.venv/bin/python main.py --config configs/kto_biased10.py:micro

test: lint
	.venv/bin/python -m pytest $(PYTEST_ARGS)

fuzz: $(TEST)
	.venv/bin/python -m tests.fuzz 2000

lint: $(TEST)
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

# pip compiles modules one by one, compileall on every core; -qq ignores files meant for another
# Python.
COMPILE := PYTHONWARNINGS=ignore .venv/bin/python -m compileall -qq -j 0 .venv/lib || true
INSTALL := .venv/bin/python -m pip install -q --no-compile

# The lock file is complete, so installing the run set needs no resolver.
$(RUN): requirements/run-$(TAG).txt pyproject.toml
	@start=$$(date +%s); \
	if [ "$(VENV_TAG)" != "$(TAG)" ]; then \
	    if [ -e .venv ]; then echo "set-up: .venv holds $(or $(VENV_TAG),no working Python), not $(TAG): creating it again"; fi; \
	    rm -rf .venv && $(PYTHON) -m venv .venv || exit 1; \
	fi; \
	echo "set-up: installing $< into .venv ($$(.venv/bin/python --version))"; \
	$(INSTALL) --no-deps -r $< && \
	$(INSTALL) --no-deps --no-build-isolation -e . && \
	{ $(COMPILE); } && touch $@ && echo "set-up: done in $$(( $$(date +%s) - start )) s"

# This uses the resolver, which checks the pins and adds the CUDA packages that torch itself pins if
# its build needs them.
$(TEST): requirements/test-$(TAG).txt $(RUN)
	@start=$$(date +%s); echo "set-up: adding $< to .venv"; \
	$(INSTALL) -r $< && \
	{ $(COMPILE); } && touch $@ && echo "set-up: test packages done in $$(( $$(date +%s) - start )) s"

# transformers 4 and 5 cannot share an environment. PEERS holds it and the exports.
PEERS ?= .venv-peers

peers: $(RUN) $(PEERS)/ready
	rm -rf $(PEERS)/exports
	.venv/bin/python -m tests.peers.logits write $(PEERS)/exports
	$(PEERS)/bin/python tests/peers/logits.py compare $(PEERS)/exports

$(PEERS)/ready:
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install -q 'transformers==4.57.*' 'torch==2.13.0' safetensors numpy
	touch $@

clean:
	rm -rf .venv .venv-peers .mypy_cache .pytest_cache .ruff_cache .hypothesis
