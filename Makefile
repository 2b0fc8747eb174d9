PYTHON ?= python3

.PHONY: demo test test-all test-lean
demo test test-all test-lean:
	$(PYTHON) run.py $@
