"use strict";
// A click on a column's head sorts by it; a second click turns the order round.
for (const head of document.querySelectorAll("th")) {
  head.firstElementChild.addEventListener("click", () => {
    const column = head.cellIndex;
    const body = head.closest("table").tBodies[0];
    const number = head.classList.contains("number");
    // Numbers begin with the largest, text with the first letter.
    const down = head.ariaSort ? head.ariaSort === "ascending" : number;
    const key = (row) => {
      const cell = row.cells[column];
      return number ? Number(cell.dataset.value ?? NaN) : cell.textContent;
    };
    const order = (a, b) => {
      if (!number) return a.localeCompare(b, undefined, { numeric: true });
      // What is not known stands last, whatever the order.
      if (Number.isNaN(a) || Number.isNaN(b)) return (Number.isNaN(a) - Number.isNaN(b)) * (down ? -1 : 1);
      return a - b;
    };
    const rows = [...body.rows].sort((a, b) => order(key(a), key(b)) * (down ? -1 : 1));
    body.append(...rows);
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.ariaSort = down ? "descending" : "ascending";
  });
}
