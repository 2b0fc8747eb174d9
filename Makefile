PYTHON ?= python3

.PHONY: demo test
demo:
	$(PYTHON) run.py demo
test:
	$(PYTHON) run.py test
