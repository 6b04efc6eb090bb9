"use strict";
// Filters, sorts, and keeps what is seen in the address; everything that it shows is in the page already.
(() => {
  const form = document.getElementById("filters");
  const search = form.elements.q;
  const list = document.getElementById("models");
  const count = document.getElementById("count");
  const FIELDS = ["q", "family", "layer", "standing", "sort"];
  const models = [...list.querySelectorAll(".model")].map((element, place) => ({
    element,
    place,
    details: element.querySelector("details"),
    slug: element.id.slice("model=".length),
    name: element.dataset.name.toLowerCase(),
    text: element.dataset.search.toLowerCase(),
    family: element.dataset.family,
    coordinates: Number(element.dataset.coordinates),
    at: element.dataset.at.split(" ").map((pair) => pair.split(":")),
  }));
  const ORDERS = {
    "": (a, b) => a.place - b.place,
    family: (a, b) => (a.family < b.family ? -1 : a.family > b.family ? 1 : a.place - b.place),
    name: (a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : a.place - b.place),
    coordinates: (a, b) => b.coordinates - a.coordinates || a.place - b.place,
  };
  let order = "";

  function apply() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const [family, layer, standing] = ["family", "layer", "standing"].map((name) => form.elements[name].value);
    let shown = 0;
    for (const model of models) {
      const fits =
        words.every((word) => model.text.includes(word)) &&
        (!family || model.family === family) &&
        model.at.some(([kind, at]) => (!standing || kind === standing) && (!layer || at === layer));
      model.element.hidden = !fits;
      shown += fits;
    }
    if (form.elements.sort.value !== order) {
      order = form.elements.sort.value;
      list.append(...[...models].sort(ORDERS[order]).map((model) => model.element));
    }
    count.textContent = shown === models.length ? `${shown} models` : `${shown} of ${models.length} models`;
    document.getElementById("none").hidden = shown > 0;
    document.getElementById("clear").hidden = !FIELDS.some((name) => form.elements[name].value);
  }

  // The address has the fields that are set and the panels that are open: #q=yu&standing=disputed&model=owner/name
  function write() {
    const state = new URLSearchParams();
    for (const name of FIELDS) if (form.elements[name].value) state.append(name, form.elements[name].value);
    for (const model of models) if (model.details.open) state.append("model", model.slug);
    const hash = state.toString().replaceAll("%2F", "/");
    if (hash === location.hash.slice(1)) return;
    try {
      history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
    } catch {
      // Some frames may not change their address: the page works without.
    }
  }

  function read() {
    if (location.hash && !location.hash.includes("=")) return; // a place in the page, no view
    const state = new URLSearchParams(location.hash.slice(1));
    for (const name of FIELDS) {
      const field = form.elements[name];
      field.value = state.get(name) ?? "";
      if (field.selectedIndex === -1) field.value = "";
    }
    const open = new Set(state.getAll("model"));
    for (const model of models) model.details.open = open.has(model.slug);
    apply();
    const first = models.find((model) => model.details.open && !model.element.hidden);
    if (first) first.element.scrollIntoView();
  }

  function clear() {
    for (const name of FIELDS) form.elements[name].value = "";
    apply();
    write();
    search.focus();
  }

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => { apply(); write(); });
  document.getElementById("clear").addEventListener("click", clear);
  window.addEventListener("hashchange", read);
  list.addEventListener("toggle", (event) => { if (event.target.parentElement.matches(".model")) write(); }, true);
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !event.ctrlKey && !event.metaKey && !event.altKey && !event.target.closest("input, select")) {
      event.preventDefault();
      search.focus();
      search.select();
    } else if (event.key === "Escape" && event.target === search && search.value) {
      event.preventDefault();
      search.value = "";
      apply();
      write();
    }
  });
  for (const button of document.querySelectorAll(".copy")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const code = button.previousElementSibling;
      getSelection().selectAllChildren(code);
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        button.textContent = "Selected";
      }
    });
  }
  form.hidden = false;
  read();
})();
