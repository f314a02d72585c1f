"""Write the tables, numbers and the figure of two pages from the rows, none by hand."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import ROOT, write_section
from benchmarks.identify import answer, ratios, relation
from benchmarks.identify.covered import by_views
from benchmarks.identify.run import CELLS, LABORATORY
from benchmarks.tables import shown, write

PAGE = ROOT / "docs" / "coverage-measured.md"
LABORATORY_PAGE = ROOT / "docs" / "identify.md"


def main() -> None:
    write("identify", LABORATORY, LABORATORY_PAGE)
    if swept := shown("identify", "ratios")[0]:
        ratios.draw(swept, LABORATORY_PAGE.parent / "figures" / ratios.FIGURE)
    write("identify", CELLS, PAGE)
    recovered, of_data = (shown("identify", name)[0] for name in CELLS)
    covered = by_views(of_data)
    if not recovered:
        return
    write_section(PAGE, "answer", "\n".join(answer.render(recovered, covered)))
    if covered:
        write_section(PAGE, "relation", "\n".join(relation.render(recovered, covered)))
        relation.draw(recovered, covered, PAGE.parent / "figures" / relation.FIGURE)


if __name__ == "__main__":
    main()
