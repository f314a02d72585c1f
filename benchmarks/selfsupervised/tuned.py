"""Options that were chosen on the stimulated cells of Kang, which no table reports."""

from __future__ import annotations

from typing import Any

TUNED: dict[str, dict[str, Any]] = {"scVI, joint": {"joint": 100.0}}
