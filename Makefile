PYTHON ?= python3

.PHONY: demo test test-all test-line test-fleet test-lean
demo test test-all test-line test-fleet test-lean:
	$(PYTHON) run.py $@
