"""Shared set-up of all tests: the project's root is importable, fixtures of `tests/support` are known."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
