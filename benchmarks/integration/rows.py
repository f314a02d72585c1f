"""Where the results are kept: JSON, one line per task, method and seed; every number of the tables."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Row as Row
from benchmarks.common import append as append
from benchmarks.common import read as read

FILE = Path(__file__).with_name("rows.jsonl")
