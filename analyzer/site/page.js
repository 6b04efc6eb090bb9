"use strict";
// Filters, sorts, and keeps what is seen in the address; everything that it shows is in the page already.
(() => {
  const form = document.getElementById("filters");
  const search = form.elements.q;
  const list = document.getElementById("models");
  const count = document.getElementById("count");
  const missing = document.getElementById("missing");
  const FIELDS = ["q", "family", "layer", "standing", "sort"];
  const models = [...list.querySelectorAll(".model")].map((element, place) => ({
    element,
    place,
    details: element.querySelector("details"),
    slug: element.id.slice("model=".length),
    name: element.dataset.name.toLowerCase(),
    text: element.dataset.search.toLowerCase(),
    numbers: `${element.dataset.name} ${element.dataset.family} ${element.dataset.numbers}`.toLowerCase(),
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
  let unknown = []; // models that the address has and the page has not

  // A number is looked for in names, rows and columns, for there is a 1 or a 2 in most sources; anything else in all
  // that is said of a model. What has a digit is whole: 2 is neither in 24 nor in 2.5, and 7b not in 17b.
  function finder(word) {
    const part = word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
    const [first] = word.match(/^[\p{L}\p{N}]*/u);
    const [last] = word.match(/[\p{L}\p{N}]*$/u);
    const before = /\p{N}/u.test(first) ? "(?<![\\p{L}\\p{N}]|\\p{N}\\.)" : "";
    const after = /\p{N}/u.test(last) ? "(?![\\p{L}\\p{N}]|\\.\\p{N})" : "";
    const pattern = new RegExp(before + part + after, "u");
    return (model) => pattern.test(/^\p{N}+$/u.test(word) ? model.numbers : model.text);
  }

  function apply() {
    for (const option of form.querySelectorAll(".unknown:not(:checked)")) option.remove();
    const typed = search.value.toLowerCase().replace(/\(([\d.,\s]+)\)/g, "$1").replace(/(?<=\d),\s+(?=\d)/g, ",");
    const words = typed.match(/\S+/g) ?? []; // (1, 2, 3) is the word 1,2,3
    const finds = words.map(finder);
    const [family, layer, standing] = ["family", "layer", "standing"].map((name) => form.elements[name].value);
    let shown = 0;
    for (const model of models) {
      const fits =
        finds.every((find) => find(model)) &&
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
    for (const slug of unknown) state.append("model", slug);
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
      const value = state.get(name) ?? "";
      field.value = value;
      if (field.selectedIndex !== -1) continue;
      if (name === "sort") {
        field.value = "";
        continue;
      }
      const option = new Option(value.slice(0, 100), value, false, true); // a filter that nothing passes is seen
      option.className = "unknown";
      field.append(option);
    }
    const open = new Set(state.getAll("model"));
    for (const model of models) model.details.open = open.has(model.slug);
    notice([...open].filter((slug) => !models.some((model) => model.slug === slug)));
    apply();
    const first = models.find((model) => model.details.open && !model.element.hidden);
    if (first) first.element.scrollIntoView();
  }

  function notice(slugs) {
    unknown = slugs;
    missing.hidden = !slugs.length;
    missing.replaceChildren(...(slugs.length ? ["No model ", slugs.join(" or "), " here."] : []).map(bdi));
  }

  function bdi(text, place) {
    const element = document.createElement(place === 1 ? "bdi" : "span");
    element.textContent = text.slice(0, 200);
    return element;
  }

  function clear() {
    notice([]);
    for (const name of FIELDS) form.elements[name].value = "";
    apply();
    write();
    search.focus();
  }

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => { notice([]); apply(); write(); });
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
