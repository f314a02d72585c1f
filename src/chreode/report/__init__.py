"""One self-contained HTML page that answers first, and says right under it whether to believe it."""

from .dynamics import dynamics_sections
from .findings import findings
from .fits import fit_sections
from .page import Section, write
from .sections import bench_sections, write_bench

__all__ = [
    "Section",
    "bench_sections",
    "dynamics_sections",
    "findings",
    "fit_sections",
    "write",
    "write_bench",
]
