# Everything from a machine with Python 3.11 or newer, pip, gcc, git and make; all of it lands in .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BACKEND ?= torch
BIN := .venv/bin
RUN ?= runs/demo-$(BACKEND)-$(shell date +%Y%m%d-%H%M%S)

.PHONY: demo test lint clean

demo: .venv/installed-$(BACKEND)
	$(BIN)/ict train --backend $(BACKEND) --preset digits --out $(RUN)
	$(BIN)/ict sample $(RUN) --backend $(BACKEND) --num 100 --out $(RUN)/one-step.png
	$(BIN)/ict sample $(RUN) --backend $(BACKEND) --num 100 --steps 2 --out $(RUN)/two-step.png
	@echo
	@$(BIN)/ict eval $(RUN) --backend $(BACKEND)
	@echo "  a plain U-Net of 0.5 M parameters, by the same method: 0.67"
	@echo "Pictures: $(RUN)/one-step.png, $(RUN)/two-step.png, and while it learnt: $(RUN)/samples/"

# The parity tests are few and slow: begun last, they would keep one of the two processes waiting.
test: .venv/installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/parity tests

lint: .venv/installed-test .venv/types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv

.venv/bin/python:
	$(PYTHON) -m venv .venv

# The packages under the names that they are installed by, for mypy.
.venv/types: | .venv/bin/python
	mkdir -p $@
	ln -sfn ../../ict_core $@/ict_core
	ln -sfn ../../backends $@/ict_backends
	ln -sfn ../../cli $@/ict_cli

.venv/installed-test: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/pip install -q -c constraints.txt -e '.[test]'
	touch $@

.venv/installed-%: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/pip install -q -c constraints.txt -e '.[$*,digits]'
	touch $@
