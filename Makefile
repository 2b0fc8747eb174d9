PYTHON ?= python3

.PHONY: demo test test-all test-line test-lean
demo test test-all test-line test-lean:
	$(PYTHON) run.py $@
