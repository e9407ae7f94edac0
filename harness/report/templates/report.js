"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  const panel = $("panel"), body = $("panel-body"), search = $("q"), shown = $("shown"), matrix = $("matrix");
  const rows = all("tr[data-s]", matrix), links = all("a.tile", matrix);
  const byNumber = new Map(links.map((link) => [link.dataset.n, link]));
  const selects = all("select[data-axis]"), boxes = all("input[data-outcome]");

  // Which columns have which values: the headings say it, so that the page need not say it twice.
  const axes = selects.map((select) => select.dataset.axis);
  const columns = [];
  all("thead tr:not(.sums)", matrix).forEach((row, number) => {
    all("th[data-from]", row).forEach((head) => {
      for (let at = 0; at < head.colSpan; at++) {
        const column = Number(head.dataset.from) + at;
        (columns[column] ||= {})[axes[number]] = head.textContent;
      }
    });
  });
  const heads = all("th[data-from]", matrix).map((head) => ({ head, from: Number(head.dataset.from), span: head.colSpan }));

  // The hash keeps what is chosen, so that a link shows the same.
  let state = new URLSearchParams(), own = "";
  const keep = () => {
    const text = state.toString();
    own = text ? "#" + text : "#";
    history.replaceState(null, "", own);
  };
  const read = () => {
    const hash = location.hash.slice(1);
    state = new URLSearchParams(hash.includes("=") ? hash : "");
    search.value = state.get("q") || "";
    for (const select of selects) {
      select.value = state.get(select.dataset.axis) || "";
      if (select.selectedIndex < 0) select.value = "";
    }
    const off = (state.get("without") || "").split(",");
    for (const box of boxes) box.checked = !off.includes(box.dataset.outcome);
  };
  const write = () => {
    const set = (name, value) => (value ? state.set(name, value) : state.delete(name));
    set("q", search.value.trim());
    for (const select of selects) set(select.dataset.axis, select.value);
    set("without", boxes.filter((box) => !box.checked).map((box) => box.dataset.outcome).join(","));
    keep();
  };

  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = selects.filter((select) => select.value);
    const off = new Set(boxes.filter((box) => !box.checked).map((box) => box.dataset.outcome));
    const hidden = new Set();
    columns.forEach((values, column) => {
      if (wanted.some((select) => values[select.dataset.axis] !== select.value)) hidden.add(String(column));
    });
    for (const { head, from, span } of heads) {
      let left = 0;
      for (let at = from; at < from + span; at++) left += !hidden.has(String(at));
      head.hidden = !left;
      if (left) head.colSpan = left;
    }
    for (const cell of all(".sums td[data-c]", matrix)) cell.hidden = hidden.has(cell.dataset.c);
    let count = 0;
    for (const row of rows) {
      const about = row.dataset.s.toLowerCase() + " " + (row.querySelector(".about")?.textContent.toLowerCase() || "");
      let any = false;
      const found = words.every((word) => about.includes(word));
      for (const cell of row.querySelectorAll("td[data-c]")) {
        cell.hidden = hidden.has(cell.dataset.c);
        const tile = cell.firstElementChild;
        if (!tile) continue;
        const on = !off.has(tile.classList[1]);
        tile.classList.toggle("off", !on);
        if (on && !cell.hidden && found) { any = true; count += tile.tagName === "A"; }
      }
      row.hidden = !found || !any;
    }
    for (const part of all("tbody", matrix)) part.hidden = !all("tr[data-s]", part).some((row) => !row.hidden);
    shown.textContent = count === links.length ? `${count} cells` : `${count} of ${links.length} cells`;
    rove(visible().includes(current) ? current : visible()[0]);
  };

  // One tile of the grid is reached by Tab; arrow keys go on from there.
  let current = null;
  const rove = (link) => {
    if (current) current.tabIndex = -1;
    current = link || null;
    if (current) current.tabIndex = 0;
  };
  const visible = () => links.filter((link) => !link.classList.contains("off") && !link.closest("[hidden]"));
  const move = (key) => {
    const places = visible(), column = (link) => Number(link.parentNode.dataset.c), row = (link) => link.closest("tr");
    const mine = places.filter((link) => row(link) === row(current));
    const at = mine.indexOf(current), order = places.indexOf(current);
    const nearest = (some) => some.reduce((best, link) =>
      Math.abs(column(link) - column(current)) < Math.abs(column(best) - column(current)) ? link : best, some[0]);
    const inRow = (link) => places.filter((other) => row(other) === row(link));
    switch (key) {
      case "ArrowRight": return mine[at + 1];
      case "ArrowLeft": return mine[at - 1];
      case "Home": return mine[0];
      case "End": return mine[mine.length - 1];
      case "ArrowDown": { const next = places.slice(order).find((link) => row(link) !== row(current)); return next && nearest(inRow(next)); }
      case "ArrowUp": { const before = places.slice(0, order).reverse().find((link) => row(link) !== row(current)); return before && nearest(inRow(before)); }
    }
  };
  matrix.addEventListener("keydown", (event) => {
    if (!event.target.matches("a.tile") || event.ctrlKey || event.metaKey || event.altKey) return;
    const to = move(event.key);
    if (!/^(Arrow|Home|End)/.test(event.key)) return;
    event.preventDefault();
    if (to) { rove(to); to.focus(); to.scrollIntoView({ block: "nearest", inline: "nearest" }); }
  });
  matrix.addEventListener("focusin", (event) => { if (event.target.matches("a.tile")) rove(event.target); });

  // Details of passing cells are packed; a piece is unpacked when one of its cells is opened.
  const pieces = new Map();
  const piece = (number) => {
    if (!pieces.has(number)) {
      pieces.set(number, (async () => {
        const packed = Uint8Array.from(atob($("p" + number).textContent), (letter) => letter.charCodeAt(0));
        const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
        return JSON.parse(await new Response(stream).text());
      })());
    }
    return pieces.get(number);
  };
  const details = async (link) => {
    if (!link.dataset.p) return document.querySelector(`#c${link.dataset.n} > .cell`).innerHTML;
    const [number, position] = link.dataset.p.split(".");
    return (await piece(number))[position];
  };
  let opened = null;
  const open = async (number) => {
    const link = byNumber.get(String(number));
    if (!link) return;
    let text;
    try {
      text = await details(link);
    } catch (error) {
      text = "<h3>This browser cannot unpack the details</h3><p>It lacks DecompressionStream. The cell's folder has verdict.json and all logs.</p>";
    }
    body.innerHTML = text;
    opened = link;
    rove(link);
    panel.setAttribute("aria-label", link.getAttribute("aria-label"));
    if (!panel.open) panel.showModal();
    panel.scrollTop = 0;
    body.focus({ preventScroll: true });
    body.dataset.cell = number;
    state.set("cell", number);
    keep();
  };
  panel.addEventListener("close", () => {
    body.replaceChildren();
    delete body.dataset.cell;
    state.delete("cell");
    keep();
    if (opened && visible().includes(opened)) opened.focus();
  });
  panel.addEventListener("click", (event) => { if (event.target === panel) panel.close(); });
  $("close").addEventListener("click", () => panel.close());
  const beside = (by) => {
    const places = visible(), to = places[places.indexOf(opened) + by];
    if (to) open(to.dataset.n);
  };
  $("previous").addEventListener("click", () => beside(-1));
  $("next").addEventListener("click", () => beside(1));

  document.addEventListener("click", (event) => {
    const link = event.target.closest("a.tile, a.open");
    if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
      event.preventDefault();
      open(link.dataset.n ?? link.dataset.open);
    }
    const button = event.target.closest("[data-copy]");
    if (button) copy(button);
  });
  const copy = async (button) => {
    const code = button.previousElementSibling;
    let done = true;
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch (error) {
      // From a file some browsers give no clipboard: the text is selected, and the old way tried.
      getSelection().selectAllChildren(code);
      done = document.execCommand("copy");
    }
    button.textContent = done ? "copied" : "selected";
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  };
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !event.target.matches("input, select, textarea") && !panel.open) {
      event.preventDefault();
      search.focus();
      search.select();
    }
    if (event.key === "Escape" && event.target === search && search.value) { search.value = ""; write(); filter(); }
  });

  const themes = ["system", "light", "dark"], theme = $("theme");
  const stored = () => { try { return localStorage.getItem("harness-theme"); } catch (error) { return null; } };
  const paint = (name) => {
    if (name === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = name;
    theme.textContent = "theme: " + name;
    theme.dataset.name = name;
  };
  theme.addEventListener("click", () => {
    const name = themes[(themes.indexOf(theme.dataset.name) + 1) % themes.length];
    try { localStorage.setItem("harness-theme", name); } catch (error) { /* kept for this page only */ }
    paint(name);
  });
  paint(themes.includes(stored()) ? stored() : "system");

  let folded = [];
  addEventListener("beforeprint", () => {
    folded = all("#failures details:not([open])");
    for (const one of folded) one.open = true;
  });
  addEventListener("afterprint", () => { for (const one of folded) one.open = false; });

  for (const input of [search, ...selects, ...boxes]) input.addEventListener("input", () => { write(); filter(); });
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("reset").addEventListener("click", () => { state = new URLSearchParams(); keep(); read(); filter(); });
  const start = () => {
    if (location.hash === own) return;
    read();
    filter();
    if (state.has("cell")) open(state.get("cell"));
    else if (panel.open) panel.close();
    const target = /^#c\d+$/.test(location.hash) && $(location.hash.slice(1));
    if (target) { target.open = true; target.scrollIntoView(); }
  };
  addEventListener("hashchange", start);
  for (const link of links) link.tabIndex = -1;
  for (const id of ["filters", "theme", "keys"]) $(id).hidden = false;
  own = null;
  start();
  document.documentElement.dataset.ready = "";
})();
