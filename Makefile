# make demo: set up, train, evaluate and look at a thinking model (about 5 minutes on 2 cores)
# make test: set up and run the tests, large products of cases by a random third
# make test-all: all cases, and what takes long
# make compile-all: compile every variant of every kernel for every GPU generation; needs no GPU
PYTHON ?= python3
BIN := .venv/bin
OUT := out/demo_addition
# a process per core; the tests of a file share what they train, so they stay together, in the order of conftest.py
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all compile-all lint clean

.venv/ready: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "LoopLM needs Python 3.11 or later: make PYTHON=python3.x")'
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv || { rm -rf .venv; echo "on Debian: apt install python3-venv"; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

demo: .venv/ready
	$(BIN)/python data/addition/prepare.py --max_digits=3 --zeros=shorter --out_dir=data/addition/demo
	$(BIN)/python train.py config/demo_addition.py
	$(BIN)/python evaluate.py --checkpoint=$(OUT)/ckpt_last.pt --problems=1000 --digits=[1,2,3,4,6,8,12,16]
	$(BIN)/python sample.py --checkpoint=$(OUT)/ckpt_last.pt --start="57+68= 999+1= 4321+5789=" --trace_file=$(OUT)/trace.html
	@echo "look at $(OUT)/trace.html and $(OUT)/loss.png"

test: .venv/ready
	$(PYTEST)

test-all: .venv/ready
	$(PYTEST) --all --durations=15

compile-all: .venv/ready
	$(BIN)/python tests/compile_all.py

lint: .venv/ready
	$(BIN)/ruff check .

clean:
	rm -rf out .venv
