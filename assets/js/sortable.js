// Sorts the rows of `.cast-sorted` by the column whose heading is pressed, largest first; the next press turns
// the order. What has no value stays below. The order outlives a table that is drawn anew with more rows.
const order = { column: "", descending: true };

function sorted() {
  const body = element.querySelector(".cast-sorted");
  if (!body || !order.column) return;
  const headings = [...element.querySelectorAll("thead th")];
  const place = headings.findIndex((heading) => heading.textContent === order.column);
  headings.forEach((heading, index) => {
    heading.ariaSort = index !== place ? "none" : order.descending ? "descending" : "ascending";
  });
  if (place < 0) return;
  const value = (row) => row.cells[place]?.dataset.value;
  const compare = (a, b) => {
    const numbers = !isNaN(a) && !isNaN(b);
    const difference = numbers ? Number(a) - Number(b) : a.localeCompare(b);
    return order.descending ? -difference : difference;
  };
  const rows = [...body.rows];
  const known = rows.filter((row) => value(row) !== undefined);
  known.sort((a, b) => compare(value(a), value(b)));
  body.append(...known, ...rows.filter((row) => value(row) === undefined));
  observer.takeRecords();
}

const observer = new MutationObserver(sorted);
observer.observe(element, { childList: true, subtree: true });
element.addEventListener("click", (event) => {
  const column = event.target.closest("thead button")?.textContent;
  if (!column) return;
  order.descending = column === order.column ? !order.descending : column !== "Method";
  order.column = column;
  sorted();
});
