.PHONY: install test style example

install:
	pip install -c constraints.txt -e ".[test]"

test:
	pytest -n 2

style:
	ruff check . && ruff format --check .
	mypy
	lint-imports

example:
	accelerate launch examples/unlearn_vit.py
