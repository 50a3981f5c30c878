// The comparison's interaction: search among its photos.
"use strict";
(() => {
  const form = document.getElementById("filters");
  if (form) {
    const find = document.getElementById("find");
    const figures = [...document.querySelectorAll("#gallery figure")];
    const plain = (text) => ` ${text.toLowerCase().replace(/[^\p{L}\p{N}\p{M}]+/gu, " ").trim()} `;
    const texts = figures.map((figure) => plain(figure.querySelector("figcaption").textContent));
    const update = () => {
      const terms = find.value.split(/\s+/).map((term) => plain(term).trimEnd()).filter((term) => term.trim());
      let shown = 0;
      figures.forEach((figure, place) => {
        figure.hidden = !terms.every((term) => texts[place].includes(term));
        shown += !figure.hidden;
      });
      document.getElementById("count").textContent = `${shown} of ${figures.length} photos`;
    };
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", update);
    document.addEventListener("keydown", (event) => {
      if (event.key !== "/" || event.target.matches("input") || event.ctrlKey || event.metaKey || event.altKey) return;
      find.focus();
      event.preventDefault();
    });
    form.hidden = false;
    update();
  }
  document.documentElement.dataset.ready = "yes";
})();
