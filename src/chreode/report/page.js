// A click on the head of a column sorts its table, largest first; what is absent stays last.
for (const button of document.querySelectorAll("th > button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement;
    const down = head.ariaSort !== "descending";
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.ariaSort = down ? "descending" : "ascending";
    const text = (row) => row.cells[head.cellIndex].textContent.trim();
    const number = (row) => parseFloat(text(row).replaceAll(",", ""));
    const order = (a, b) => {
      const [x, y] = [number(a), number(b)];
      if (isNaN(x) || isNaN(y)) {
        if (isNaN(x) !== isNaN(y)) return isNaN(x) ? 1 : -1;
        return down ? text(a).localeCompare(text(b)) : text(b).localeCompare(text(a));
      }
      return down ? y - x : x - y;
    };
    const body = head.closest("table").tBodies[0];
    body.append(...[...body.rows].sort(order));
  });
}
