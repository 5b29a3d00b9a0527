// Sorting, searching and filtering of the table of layers; without this script the table is complete, and layers open.
"use strict";
(() => {
  const table = document.getElementById("table");
  const search = document.getElementById("search");
  const show = document.getElementById("show");
  const open = document.getElementById("open");
  const found = document.getElementById("found");
  const headers = [...table.tHead.rows[0].cells];
  const compareText = new Intl.Collator("en", { numeric: true }).compare;

  // A layer is a tbody: its row, and a second one with details.
  const layers = [...table.tBodies].map((body) => {
    const row = body.rows[0];
    const text = ["name", "kind", "becomes", "by", "notes"]
      .map((style) => row.querySelector("." + style).textContent)
      .join("\n")
      .toLowerCase();
    return { body, row, text, states: body.dataset.is.split(","), details: row.querySelector("details") };
  });
  let order = layers;

  // Numbers in ascending order; what is missing or not finite goes last in both directions.
  function compare(a, b, column, sign) {
    const [left, right] = [a, b].map((layer) => layer.row.cells[column]);
    const numeric = layers.some((layer) => "v" in layer.row.cells[column].dataset);
    if (!numeric) {
      const [x, y] = [left, right].map((cell) => cell.textContent.trim());
      if (!x || !y) return Boolean(y) - Boolean(x);
      return sign * compareText(x, y);
    }
    const [x, y] = [left, right].map((cell) => ("v" in cell.dataset ? Number(cell.dataset.v) : NaN));
    if (Number.isFinite(x) && Number.isFinite(y)) return sign * (x - y);
    return Number.isFinite(y) - Number.isFinite(x);
  }

  // Each click goes on: ascending, descending, the order of the model.
  function sort(column) {
    const before = headers[column].getAttribute("aria-sort");
    const next = before === "ascending" ? "descending" : before === "descending" ? null : "ascending";
    for (const header of headers) header.removeAttribute("aria-sort");
    if (next) headers[column].setAttribute("aria-sort", next);
    const sign = next === "descending" ? -1 : 1;
    order = next ? [...layers].sort((a, b) => compare(a, b, column, sign)) : layers;
    table.append(...order.map((layer) => layer.body));
  }

  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const state = show.value.replace(/ \(\d+\)$/, "");
    let count = 0;
    for (const layer of layers) {
      const wanted = words.every((word) => layer.text.includes(word)) && (!state || layer.states.includes(state));
      layer.body.hidden = !wanted;
      count += wanted;
    }
    found.textContent = count === layers.length ? "" : `${count} of ${layers.length} layers`;
  }

  // Opens or closes what is shown.
  function toggle() {
    const opening = open.textContent === "Open all";
    for (const layer of layers) if (!layer.body.hidden) layer.details.open = opening;
    open.textContent = opening ? "Close all" : "Open all";
  }

  // A link to a layer opens it, and shows it where a search has hidden it.
  for (const link of document.querySelectorAll(".damage a")) {
    link.addEventListener("click", () => {
      const body = document.getElementById(link.hash.slice(1));
      body.hidden = false;
      body.querySelector("details").open = true;
    });
  }

  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = header.textContent;
    button.addEventListener("click", () => sort(column));
    header.replaceChildren(button);
  });
  // Only a table that needs no scrolling may leave its box, so that its header can stay at the top of the window.
  const box = table.parentElement;
  new ResizeObserver(() => box.classList.toggle("fits", table.scrollWidth <= box.clientWidth)).observe(box);
  search.addEventListener("input", filter);
  show.addEventListener("change", filter);
  open.addEventListener("click", toggle);
  document.querySelector(".controls").hidden = false;
  filter(); // a browser may bring back what was typed before a reload
})();
