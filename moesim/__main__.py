"""``python -m moesim``."""

from moesim.cli import run

run()
