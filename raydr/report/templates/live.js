"use strict";
// `raydr watch`: reload when the run has committed something new, but never under an open dialog. What the reader
// has set (band, gallery, open details) is kept over the reload.
(() => {
  const KEPT = "raydr-kept", inputs = () => [...document.querySelectorAll("input, select")];
  const details = () => [...document.querySelectorAll("details")];
  const kept = JSON.parse(sessionStorage.getItem(KEPT) || "{}");
  for (const item of inputs()) {
    const value = kept[item.id];
    if (!item.id || value === undefined) continue;
    if (item.type === "checkbox") item.checked = value; else item.value = value;
    item.dispatchEvent(new Event(item.type === "range" ? "input" : "change"));
  }
  details().forEach((item, index) => { item.open = kept.details?.[index] ?? item.open; });
  if (kept.theme) document.documentElement.dataset.theme = kept.theme;
  const keep = () => {
    const values = {details: details().map((item) => item.open), theme: document.documentElement.dataset.theme};
    for (const item of inputs()) if (item.id) values[item.id] = item.type === "checkbox" ? item.checked : item.value;
    sessionStorage.setItem(KEPT, JSON.stringify(values));
  };
  let version = null;
  const ask = async () => {
    try {
      const found = await (await fetch("version", {cache: "no-store"})).text();
      if (version !== null && found !== version && !document.querySelector("dialog[open]")) {
        keep();
        location.reload();
      }
      version ??= found;
    } catch { /* the server has ended: the page stays as it is */ }
  };
  setInterval(ask, 3000);
  ask();
})();
