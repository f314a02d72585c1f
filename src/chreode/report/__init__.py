"""One self-contained HTML page that answers first whether the numbers can be believed."""

from .page import Section, write
from .sections import bench_sections, findings, fit_sections, write_bench

__all__ = ["Section", "bench_sections", "findings", "fit_sections", "write", "write_bench"]
