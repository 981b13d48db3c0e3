.PHONY: check format test
check:
	ruff format --check .
	ruff check .
	mypy
	pytest -n 2
format:
	ruff format .
	ruff check --fix .
test:
	pytest -n 2
