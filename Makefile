PYTHON ?= python3

.PHONY: demo test test-all
demo test test-all:
	$(PYTHON) run.py $@
