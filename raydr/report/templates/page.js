"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
  const element = (name, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  };

  // Light and dark: the reader's system decides until the button is pressed.
  $("[data-theme-button]").addEventListener("click", () => {
    const root = document.documentElement;
    const now = root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
  });

  // Sortable tables: numbers by data-value, missing ones last; a second press reverses.
  for (const table of $$("table.sortable")) {
    const heads = $$("thead th", table);
    heads.forEach((head, column) => {
      $("button", head).addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") === "descending" || (column === 0 && head.getAttribute("aria-sort") !== "ascending");
        for (const other of heads) other.setAttribute("aria-sort", "none");
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const value = (row) => {
          const text = row.children[column].dataset.value;
          const number = parseFloat(text);
          return Number.isNaN(number) ? (column === 0 ? text : up ? Infinity : -Infinity) : number;
        };
        const rows = $$("tbody tr", table).sort((a, b) => {
          const x = value(a), y = value(b);
          return (x < y ? -1 : x > y ? 1 : 0) * (up ? 1 : -1);
        });
        $("tbody", table).append(...rows);
      });
    });
  }

  // The map of bands and ratios: another metric.
  for (const card of $$("[data-map]")) {
    const map = data.maps[Number(card.dataset.map)];
    $("[data-map-metric]", card).addEventListener("change", (event) => {
      const cells = map.values[event.target.value];
      const known = cells.flat().filter((value) => value !== null);
      const low = Math.min(...known), high = Math.max(...known);
      $$("tbody tr", card).forEach((row, i) => $$("td", row).forEach((cell, j) => {
        const value = cells[i][j];
        cell.firstChild.nodeValue = value === null ? "—" : (100 * value).toFixed(1);
        cell.style.setProperty("--v", value === null || high === low ? 0 : (value - low) / (high - low));
      }));
      const reference = $("[data-map-reference]", card);
      if (reference) reference.textContent = (100 * map.reference[event.target.value]).toFixed(1);
    });
  }

  if (!data.groups.length) return;

  // The band. Counts at each of the slider's stops are exact: images inside = at_or_below[high] - below[low].
  const low = $("#band-low"), high = $("#band-high");
  const band = () => [Number(low.value), Number(high.value)];
  const inside = (score) => score >= band()[0] - 1e-9 && score <= band()[1] + 1e-9;
  const showBand = () => {
    const [from, to] = band();
    low.setAttribute("aria-valuetext", `from ${from.toFixed(2)}`);
    high.setAttribute("aria-valuetext", `to ${to.toFixed(2)}`);
    $("#band-output").textContent = `${from.toFixed(2)} – ${to.toFixed(2)}`;
    $(".range .fill").style.left = `${100 * from}%`;
    $(".range .fill").style.right = `${100 - 100 * to}%`;
    let accepted = 0, made = 0;
    data.groups.forEach((group, index) => {
      const count = group.at_or_below[Math.round(100 * to)] - group.below[Math.round(100 * from)];
      accepted += count;
      made += group.made;
      $(`[data-group="${index}"]`).textContent = count;
      $(`[data-group-share="${index}"]`).textContent = `${(100 * count / group.made).toFixed(1)} %`;
    });
    $("#band-total").textContent = `${accepted} of ${made} images inside (${(100 * accepted / made).toFixed(1)} %)`;
    for (const rect of $$("[data-band]")) {
      rect.setAttribute("x", `${2 + 96 * from}%`);  // figures.histogram leaves 2 % on either side
      rect.setAttribute("width", `${96 * (to - from)}%`);
    }
    for (const row of $$("[data-map] tbody tr")) {
      row.classList.toggle("chosen", Math.abs(row.dataset.low - from) < 0.005 && Math.abs(row.dataset.high - to) < 0.005);
    }
    showInside();
  };

  // The gallery.
  const list = $("#gallery"), only = $("#gallery-inside");
  let shown = [];
  const showGallery = () => {
    const kind = $("#gallery-kind").value, grade = $("#gallery-grade").value, up = $("#gallery-order").value === "up";
    shown = data.gallery.filter((item) => (!kind || item.kind === kind) && (!grade || item.grade === Number(grade)));
    shown.sort((a, b) => (a.score - b.score) * (up ? 1 : -1));
    list.replaceChildren(...shown.map((item) => {
      const said = `${data.grades[item.grade]}, ${item.kind} generator, score ${item.score.toFixed(2)}`;
      const button = element("button", {type: "button", className: "thumb", title: said},
        element("img", {src: item.src, alt: said, decoding: "async"}),
        element("span", {ariaHidden: "true"}, element("b", {textContent: item.score.toFixed(2)}), data.grades[item.grade]));
      button.addEventListener("click", () => openSample(item));
      return element("li", {}, button);
    }));
    showInside();
  };
  const showInside = () => {
    let count = 0;
    shown.forEach((item, index) => {
      const cell = list.children[index], within = inside(item.score);
      count += within;
      cell.firstChild.classList.toggle("out", !within);
      cell.hidden = only.checked && !within;
    });
    $("#gallery-count").textContent = `${count} of ${shown.length} shown lie inside the band`;
  };
  for (const id of ["kind", "grade", "order"]) $(`#gallery-${id}`).addEventListener("change", showGallery);
  only.addEventListener("change", showInside);

  low.addEventListener("input", () => {
    if (Number(low.value) >= Number(high.value)) low.value = Math.max(0, Number(high.value) - 0.01);
    showBand();
  });
  high.addEventListener("input", () => {
    if (Number(high.value) <= Number(low.value)) high.value = Math.min(1, Number(low.value) + 0.01);
    showBand();
  });
  $("#band-reset").addEventListener("click", () => {
    [low.value, high.value] = data.band;
    showBand();
  });

  // One sample.
  const dialog = $("#sample");
  let current = null;
  const openSample = (item) => {
    current = item;
    $("#sample-image").src = item.src;
    $("#sample-image").alt = `Sample ${item.id}`;
    $("#sample-title").textContent = `${data.grades[item.grade]}, score ${item.score.toFixed(3)}`;
    $("#sample-facts").textContent = `${item.kind} generator, index ${item.index}, seed ${item.seed}. ${inside(item.score) ? "Inside" : "Outside"} the band.`;
    const mean = item.p[0].map((_, grade) => item.p.reduce((sum, member) => sum + member[grade], 0) / item.p.length);
    const row = (name, values) => element("tr", {}, Object.assign(element("th", {textContent: name}), {scope: "row"}),
      ...values.map((value, grade) => {
        const cell = element("td", {textContent: value.toFixed(2), className: grade === item.grade ? "heat intended" : "heat"});
        cell.style.setProperty("--v", value);
        return cell;
      }));
    $("#sample-table tbody").replaceChildren(...item.p.map((member, index) => row(data.members.length === item.p.length ? data.members[index] : `member ${index + 1}`, member)), row("mean", mean));
    $("#sample-command").textContent = `raydr regenerate ${item.run} ${item.id} --to ${item.id.replaceAll("/", "-")}.png`;
    $("#sample-copy").textContent = "copy command";
    if (!dialog.open) dialog.showModal();
  };
  const step = (by) => {
    const visible = shown.filter((item) => !only.checked || inside(item.score));
    const index = visible.indexOf(current) + by;
    if (index >= 0 && index < visible.length) openSample(visible[index]);
  };
  if (dialog) {
    $("#sample-previous").addEventListener("click", () => step(-1));
    $("#sample-next").addEventListener("click", () => step(1));
    $("#sample-close").addEventListener("click", () => dialog.close());
    $("#sample-copy").addEventListener("click", async (event) => {
      const command = $("#sample-command");
      try {
        await navigator.clipboard.writeText(command.textContent);
        event.target.textContent = "copied";
      } catch {  // a page from disk may be refused the clipboard: select, so that Ctrl+C works
        getSelection().selectAllChildren(command);
        event.target.textContent = "selected";
      }
    });
    dialog.addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft") step(-1);
      if (event.key === "ArrowRight") step(1);
    });
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  }
  showGallery();
  showBand();
})();
