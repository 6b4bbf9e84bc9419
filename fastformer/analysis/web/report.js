"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
// As fastformer/writing.py has it: rounded down, so that 100 % is the whole only.
const roundedDown = (share, digits) => Math.floor((share + 5e-7) * 10 ** digits) / 10 ** digits;
const percent = (share, digits = 1) => `${(100 * roundedDown(share, digits + 2)).toFixed(digits)} %`;
const hundredths = (share) => roundedDown(share, 2).toFixed(2);

function element(name, attributes = {}, text = "") {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

function fill(select, labels) {
  const before = Number(select.value) || 0;
  select.replaceChildren(...labels.map((label, index) => element("option", { value: index }, label)));
  select.value = before < labels.length ? before : 0;
}

const explorer = {
  start() {
    if (!data.attention.length) return;
    for (const id of ["expression", "layer", "head"]) {
      byId(id).addEventListener("change", () => this.draw());
    }
    fill(byId("expression"), data.attention.map((example) => example.label));
    this.table = byId("weights");
    this.table.addEventListener("mouseover", (event) => this.point(event.target));
    this.table.addEventListener("focusin", (event) => this.point(event.target));
    this.table.addEventListener("keydown", (event) => this.move(event));
    this.draw();
  },

  draw() {
    const example = data.attention[Number(byId("expression").value)];
    fill(byId("layer"), example.layers.map((_, index) => `layer ${index + 1}`));
    const layer = Number(byId("layer").value);
    fill(byId("head"), example.layers[layer].map((_, index) => `head ${index + 1}`));
    const head = Number(byId("head").value);
    Object.assign(this, { example, layer, head });
    this.drawAnswer();
    this.drawTable();
    this.drawHeads();
  },

  drawAnswer() {
    const { prediction, expected, correct, probability, top } = this.example;
    const verdict = element("strong", { class: correct ? "good" : "bad" },
      correct ? "right" : `wrong, it is ${expected}`);
    const likeliest = top.map(([token, share]) => `"${token}" ${percent(share, 2)}`).join(", ");
    byId("answer").replaceChildren(`The model answers ${prediction} (${percent(probability, 2)}): `,
      verdict, `. Likeliest: ${likeliest}.`);
  },

  drawTable() {
    const { tokens, layers, read, causal } = this.example;
    const weights = layers[this.layer][this.head];
    const last = this.layer === layers.length - 1;
    const header = element("tr");
    header.append(element("td"), ...tokens.map((token) => element("th", { scope: "col" }, token)));
    const rows = weights.map((row, from) => {
      const line = element("tr");
      if (last && read !== null && !read.includes(from)) line.className = "unread";
      line.append(element("th", { scope: "row" }, tokens[from]));
      row.forEach((weight, to) => {
        const numbered = tokens.length <= 14 && !(causal && to > from);
        const share = numbered ? percent(weight, 0).replace(" %", "") : "";
        line.append(element("td", { style: `--w:${weight}`, "data-from": from, "data-to": to,
          tabindex: from + to ? -1 : 0, "aria-label": this.sentence(from, to) }, share));
      });
      return line;
    });
    const caption = element("caption", {},
      `Layer ${this.layer + 1}, head ${this.head + 1}: how much each token (row) looks at each `
      + "(column), in %");
    const [head, body] = [element("thead"), element("tbody")];
    head.append(header);
    body.append(...rows);
    this.table.replaceChildren(caption, head, body);
    this.table.classList.toggle("compact", tokens.length > 14);
    this.table.classList.toggle("dense", tokens.length > 16);
    const summary = this.example.heads.find(
      (item) => item.layer === this.layer + 1 && item.head === this.head + 1);
    const places = summary.looks_at.map(([place, token, weight]) =>
      `"${token}" at position ${place} (${percent(weight, 0)})`).join(", ");
    byId("kind").textContent = `This head is ${summary.kind}: its entropy is `
      + `${hundredths(summary.entropy)} of the largest possible. Most of its weight: ${places}.`;
    byId("readout").textContent = "Point at a cell, or go to the table and use the arrow keys.";
  },

  drawHeads() {
    const { layers, tokens } = this.example;
    const grid = byId("heads");
    grid.style.setProperty("--heads", layers[0].length);
    const buttons = layers.flatMap((heads, layer) => heads.map((weights, head) => {
      const pressed = layer === this.layer && head === this.head;
      const button = element("button", { type: "button", "aria-pressed": pressed,
        "aria-label": `layer ${layer + 1}, head ${head + 1}` });
      const thumb = element("span", { class: "thumb", "aria-hidden": "true",
        style: `grid-template-columns:repeat(${tokens.length},1fr)` });
      thumb.append(...weights.flat().map((weight) => element("i", { style: `--w:${weight}` })));
      button.append(thumb, `L${layer + 1} H${head + 1}`);
      button.addEventListener("click", () => this.choose(layer, head));
      return button;
    }));
    grid.replaceChildren(...buttons);
  },

  choose(layer, head) {
    byId("layer").value = layer;
    byId("head").value = head;
    this.draw();
    byId("heads").children[layer * this.example.layers[0].length + head].focus();
  },

  sentence(from, to) {
    const { tokens, layers } = this.example;
    const weight = layers[this.layer][this.head][from][to];
    return `"${tokens[from]}" at position ${from} looks at "${tokens[to]}" at position ${to}: `
      + percent(weight, 2);
  },

  point(target) {
    const cell = target.closest("td[data-from]");
    if (!cell) return;
    for (const old of this.table.querySelectorAll(".here")) old.classList.remove("here");
    cell.classList.add("here");
    byId("readout").textContent = this.sentence(Number(cell.dataset.from), Number(cell.dataset.to));
  },

  move(event) {
    const cell = event.target.closest("td[data-from]");
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!cell || !step) return;
    event.preventDefault();
    const [from, to] = [Number(cell.dataset.from) + step[0], Number(cell.dataset.to) + step[1]];
    const next = this.table.querySelector(`td[data-from="${from}"][data-to="${to}"]`);
    if (!next) return;
    cell.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  },
};

const embeddingMap = {
  start() {
    const slider = byId("epoch");
    if (!slider) return;
    slider.addEventListener("input", () => this.draw(Number(slider.value)));
    this.draw(Number(slider.value));
  },

  draw(index) {
    const { label, places } = data.maps[index];
    byId("map").querySelectorAll("g").forEach((group, point) => {
      group.setAttribute("transform", `translate(${places[point].join(" ")})`);
    });
    byId("epoch-label").textContent = label;
    byId("epoch").setAttribute("aria-valuetext", label);
  },
};

const scrolling = {
  start() {
    const observer = new ResizeObserver((entries) => {
      for (const { target } of entries) this.mark(target.closest(".scroll"));
    });
    for (const box of document.querySelectorAll(".scroll")) {
      observer.observe(box);
      observer.observe(box.firstElementChild);
    }
  },

  mark(box) {
    box.classList.toggle("overflows", box.scrollWidth > box.clientWidth + 1);
  },
};

explorer.start();
embeddingMap.start();
scrolling.start();
