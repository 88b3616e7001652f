"use strict";
// `raydr watch`: reload when the run has committed something new, but never under an open dialog.
(() => {
  let version = null;
  const ask = async () => {
    try {
      const found = await (await fetch("version", {cache: "no-store"})).text();
      if (version !== null && found !== version && !document.querySelector("dialog[open]")) location.reload();
      version ??= found;
    } catch { /* the server has ended: the page stays as it is */ }
  };
  setInterval(ask, 3000);
  ask();
})();
