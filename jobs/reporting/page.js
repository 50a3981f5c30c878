// The report's interaction: search, filters, order, pages, an enlarged row, by mouse and keyboard.
// Content of rows is inserted as text, never as markup.
"use strict";
(() => {
  const PAGE = 100;
  const get = (id) => document.getElementById(id);
  const [form, bar, gallery, list, card] = ["filters", "bar", "gallery", "list", "card"].map(get);
  const figures = [...gallery.querySelectorAll("figure")];
  const image = document.createElement("img");
  card.querySelector(".picture").prepend(image);
  const say = (text) => { get("count").textContent = text; };
  let rows = null;        // the columns, as the page carries them
  let words = null;       // words of each caption
  let haystack = null;    // what search looks in, made when it is first asked for
  let photoOf = null;     // the figure of a row, where it has one
  let found = [];         // rows that pass the filters, in order
  let page = 0, at = -1, asList = false, opener = null;

  async function unpack(text) {
    const letters = atob(text);
    const bytes = new Uint8Array(letters.length);
    // Uint8Array.from with a function took a third of a second for seven megabytes.
    for (let at = 0; at < bytes.length; at++) bytes[at] = letters.charCodeAt(at);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  }

  // Letters and digits of any script, single spaces between and around: " a dog s ball "
  const plain = (text) => ` ${text.toLowerCase().replace(/[^\p{L}\p{N}\p{M}]+/gu, " ").trim()} `;
  // Scripts without spaces between words are matched anywhere.
  const unspaced = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}\p{Script=Khmer}\p{Script=Lao}]/u;

  function terms(query) {
    const wanted = [], unwanted = [];
    for (const term of query.split(/\s+/)) {
      const out = term.length > 1 && term.startsWith("-");
      const text = plain(out ? term.slice(1) : term).trimEnd();
      if (text.trim()) (out ? unwanted : wanted).push(unspaced.test(text) ? text.trim() : text);
    }
    return { wanted, unwanted };
  }

  const number = (id) => (get(id).value === "" ? null : Number(get(id).value));

  function passing() {
    const { wanted, unwanted } = terms(get("find").value);
    if ((wanted.length || unwanted.length) && !haystack) {
      haystack = rows.texts.map((text, row) => plain(text) + plain(rows.ids[row]));
    }
    const kind = get("kind").value;
    const error = kind.startsWith("class ") ? rows.classes.indexOf(kind.slice(6)) : null;
    const [low, high] = [number("score-from"), number("score-to")].map((x) => (x === null ? null : Math.round(x * 1000)));
    const [few, many] = [number("words-from"), number("words-to")];
    const result = [];
    for (let row = 0; row < rows.ids.length; row++) {
      const failed = rows.errors[row];
      if (kind === "ok" ? failed >= 0 : kind === "error" ? failed < 0 : error !== null && failed !== error) continue;
      const score = rows.scores[row];
      if (low !== null && (score === null || score < low)) continue;
      if (high !== null && (score === null || score > high)) continue;
      if (few !== null && (failed >= 0 || words[row] < few)) continue;
      if (many !== null && (failed >= 0 || words[row] > many)) continue;
      if (wanted.length && !wanted.every((term) => haystack[row].includes(term))) continue;
      if (unwanted.length && unwanted.some((term) => haystack[row].includes(term))) continue;
      result.push(row);
    }
    return sorted(result);
  }

  function sorted(result) {
    const [key, way] = get("order").value.split("-");
    if (!key) return result;
    if (key === "id") {
      const { compare } = new Intl.Collator("en", { numeric: true });
      return result.sort((a, b) => compare(rows.ids[a], rows.ids[b]));
    }
    const sign = way === "up" ? 1 : -1;
    // Errors have neither score nor words: they come last.
    const value = (row) => (rows.errors[row] >= 0 || (key === "score" && rows.scores[row] === null)
      ? Infinity : sign * (key === "score" ? rows.scores[row] : words[row]));
    const keys = new Map(result.map((row) => [row, value(row)]));
    return result.sort((a, b) => (keys.get(a) === keys.get(b) ? a - b : keys.get(a) - keys.get(b)));
  }

  function update() {
    if (!rows) return;
    found = passing();
    page = 0;
    at = -1;
    show();
  }

  const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

  /** The matching rows that the current view shows, all pages together. */
  const shown = () => (asList ? found : found.filter((row) => photoOf.has(row)));

  function show() {
    const photos = shown().length;
    gallery.hidden = asList;
    list.hidden = !asList;
    get("as-photos").setAttribute("aria-pressed", String(!asList));
    get("as-list").setAttribute("aria-pressed", String(asList));
    const of = `${found.length === rows.ids.length ? "all " : ""}${plural(found.length, "row")}`;
    const hint = photos ? "" : found.length ? "; “All rows” lists them" : "";
    say(asList ? of : `${plural(photos, "photo")} on this page, of ${of}${hint}`);
    const pages = asList ? Math.ceil(found.length / PAGE) : 1;
    get("pages").hidden = pages < 2;
    get("page").textContent = `${(page + 1).toLocaleString("en")} of ${pages.toLocaleString("en")}`;
    get("back").disabled = page === 0;
    get("on").disabled = page >= pages - 1;
    if (asList) fill(); else arrange();
  }

  function arrange() {
    const kept = shown().map((row) => photoOf.get(row));
    const visible = new Set(kept);
    for (const figure of figures) figure.hidden = !visible.has(figure);
    gallery.append(...kept);
    rove(kept, 0);
  }

  const cell = (text, name) => {
    const made = document.createElement("td");
    made.textContent = text;
    if (name) made.className = name;
    return made;
  };

  function fill() {
    const lines = found.slice(page * PAGE, (page + 1) * PAGE).map((row) => {
      const line = document.createElement("tr");
      line.dataset.row = row;
      const small = document.createElement("td");
      const source = photoOf.get(row)?.querySelector("img");
      if (source) {
        const thumbnail = document.createElement("img");
        thumbnail.src = source.src;
        thumbnail.alt = "";
        small.append(thumbnail);
      }
      const failed = rows.errors[row] >= 0;
      const text = failed ? `${rows.classes[rows.errors[row]]}: ${rows.texts[row]}` : rows.texts[row] || "(empty caption)";
      line.append(small, cell(text, failed ? "bad" : ""), cell(rows.ids[row], "name"),
        cell(rows.scores[row] === null ? "" : (rows.scores[row] / 1000).toFixed(2), "number"),
        cell(failed ? "" : words[row], "number"));
      return line;
    });
    list.querySelector("tbody").replaceChildren(...lines);
    list.classList.toggle("bare", !list.querySelector("img"));
    rove(lines, 0);
  }

  // Tab reaches one item; arrows move between items.
  const items = () => [...(asList ? list.querySelectorAll("tbody tr") : gallery.querySelectorAll("figure:not([hidden])"))];
  const rove = (all, chosen) => all.forEach((item, place) => { item.tabIndex = place === chosen ? 0 : -1; });
  const rowOf = (item) => (asList ? Number(item.dataset.row) : rows.photos[Number(item.dataset.photo)]);

  function move(item, key) {
    const all = items();
    const place = all.indexOf(item);
    const across = asList ? 1 : all.filter((other) => other.offsetTop === all[0].offsetTop).length;
    const steps = { ArrowDown: across, ArrowUp: -across, ArrowRight: asList ? 0 : 1, ArrowLeft: asList ? 0 : -1, Home: -place, End: all.length - 1 - place };
    if (!(key in steps)) return false;
    const target = place + steps[key];
    if (target < 0 && key === "ArrowUp") get("find").focus();
    if (target < 0 || target >= all.length || !steps[key]) return true;
    rove(all, target);
    all[target].focus();
    return true;
  }

  function turn(step) {
    page += step;
    show();
    list.scrollIntoView({ block: "nearest" });
  }

  // The enlarged row.
  function open(row) {
    if (!card.open) {
      opener = document.activeElement;
      card.showModal();
    }
    const all = shown();
    at = all.indexOf(row);
    const figure = photoOf.get(row);
    const source = figure?.querySelector("img");
    const failed = rows.errors[row] >= 0;
    const none = card.querySelector(".picture p");
    image.hidden = !source;
    none.hidden = Boolean(source);
    none.parentElement.classList.toggle("none", !source);
    if (source) { image.src = source.src; image.alt = source.alt; }
    none.textContent = figure ? figure.querySelector(".picture").textContent : failed ? "No caption." : "Its photo is not on this page.";
    get("card-text").textContent = rows.texts[row] || "(empty caption)";
    get("card-text").classList.toggle("bad", failed);
    const facts = [["name", rows.ids[row]]];
    if (failed) facts.push(["error", rows.classes[rows.errors[row]]]);
    else facts.push(["score", rows.scores[row] === null ? "none" : (rows.scores[row] / 1000).toFixed(2)], ["words", String(words[row])]);
    facts.push(["row", `${(at + 1).toLocaleString("en")} of ${all.length.toLocaleString("en")}`]);
    card.querySelector("dl").replaceChildren(...facts.flatMap(([name, value]) => {
      const [term, text] = [document.createElement("dt"), document.createElement("dd")];
      term.textContent = name;
      text.textContent = value;
      return [term, text];
    }));
    const others = figure?.querySelector("details ul")?.cloneNode(true);
    card.querySelector(".others").replaceChildren(...(others ? [others] : []));
    get("card-back").disabled = at <= 0;
    get("card-on").disabled = at < 0 || at >= all.length - 1;
  }

  function step(by) {
    const row = shown()[at + by];
    if (row !== undefined) open(row);
  }

  function view(listed) {
    asList = listed;
    page = 0;
    show();
  }

  function pick(bar) {
    const { pick: name, from, to } = bar.dataset;
    get(`${name}-from`).value = from;
    get(`${name}-to`).value = name === "words" ? Number(to) - 1 : to;
    jump();
  }

  function jump() {
    update();
    document.getElementById("photos").scrollIntoView();
    (items()[0] ?? get("find")).focus({ preventScroll: true });
  }

  function asButton(element, label) {
    element.tabIndex = 0;
    element.setAttribute("role", "button");
    element.setAttribute("aria-label", label);
  }

  async function copy(button) {
    const text = button.parentElement.querySelector("code").textContent;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Without clipboard access: select and copy as by hand.
      getSelection().selectAllChildren(button.parentElement.querySelector("code"));
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  }

  function chosen(target) {
    const copier = target.closest("[data-copy]");
    if (copier) { copy(copier); return true; }
    if (!rows) return false;
    const marked = target.closest("rect[data-pick]");
    if (marked) { pick(marked); return true; }
    const word = target.closest("[data-find]");
    if (word) { get("find").value = word.dataset.find; jump(); return true; }
    const item = target.closest("#gallery figure, #list tbody tr");
    if (item && !target.closest("details")) { open(rowOf(item)); return true; }
    return false;
  }

  document.addEventListener("click", (event) => chosen(event.target));
  document.addEventListener("keydown", (event) => {
    const { target, key } = event;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (card.open) {
      if (key === "ArrowRight" || key === "ArrowLeft") { step(key === "ArrowRight" ? 1 : -1); event.preventDefault(); }
      return;
    }
    if (target.matches("input, select, textarea")) {
      if (target.id === "find" && key === "ArrowDown" && rows) { items()[0]?.focus(); event.preventDefault(); }
      if (target.id === "find" && key === "Enter") event.preventDefault();
      return;
    }
    if (key === "/") { get("find").focus(); event.preventDefault(); return; }
    const item = target.closest("#gallery figure, #list tbody tr");
    if (item === target && rows && move(item, key)) { event.preventDefault(); return; }
    if ((key === "Enter" || key === " ") && target.matches("figure, tr, [role=button]")) {
      if (chosen(target)) event.preventDefault();
    }
  });
  let waiting = 0;
  form.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(update, 80); });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(update));
  get("as-photos").addEventListener("click", () => view(false));
  get("as-list").addEventListener("click", () => view(true));
  get("back").addEventListener("click", () => turn(-1));
  get("on").addEventListener("click", () => turn(1));
  get("card-back").addEventListener("click", () => step(-1));
  get("card-on").addEventListener("click", () => step(1));
  get("card-close").addEventListener("click", () => card.close());
  card.addEventListener("click", (event) => { if (event.target === card) card.close(); });
  card.addEventListener("close", () => opener?.focus());
  for (const button of document.querySelectorAll("[data-copy]")) button.hidden = false;

  async function begin() {
    bar.hidden = false;
    if (typeof DecompressionStream === "undefined") {
      say("This browser is too old for search; the photos are below.");
      get("as-photos").hidden = get("as-list").hidden = true;
      return;
    }
    rows = await unpack(get("data").textContent);
    words = Int32Array.from(rows.texts, (text) => (text.trim() ? text.trim().split(/\s+/).length : 0));
    photoOf = new Map(rows.photos.map((row, photo) => [row, figures[photo]]));
    for (const mark of document.querySelectorAll("rect[data-pick]")) asButton(mark, mark.textContent);
    for (const word of document.querySelectorAll("[data-find]")) asButton(word, `Search for ${word.textContent}`);
    form.hidden = false;
    asList = !figures.length;
    update();
    document.documentElement.dataset.ready = "yes";
  }
  begin();
})();
