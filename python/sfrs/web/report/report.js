"use strict";

/* Filters, the map, and what is drawn over the photographs. */

const data = JSON.parse(document.getElementById("data").textContent);
const cases = [...document.querySelectorAll(".case")];
const choice = { outcome: "all", group: "" };

function fits(outcome, group) {
  return (choice.outcome === "all" || choice.outcome === outcome) && (!choice.group || choice.group === group);
}

function mapContent() {
  const shown = data.queries.filter((query) => fits(query.success ? "success" : "failure", query.group));
  const database = data.database.map(([x, y]) => ({ x, y, kind: "database" }));
  const lines = shown
    .filter((query) => query.found)
    .map((query) => ({ x1: query.x, y1: query.y, x2: query.found[0], y2: query.found[1], kind: query.kind }));
  return { points: [...database, ...shown], lines };
}

const map = drawMap(document.getElementById("map"), { ...mapContent(), onSelect: showCase });

function showCase(id) {
  const article = document.getElementById(`case-${id}`);
  for (const other of cases) other.classList.toggle("chosen", other === article);
  article.scrollIntoView({ block: "start" });
  article.focus({ preventScroll: true });
}

function filter() {
  let count = 0;
  for (const article of cases) {
    article.hidden = !fits(article.dataset.outcome, article.dataset.group);
    count += !article.hidden;
  }
  document.querySelector(".count").textContent = `${count} of ${cases.length} cases`;
  document.getElementById("nothing").hidden = count > 0 || cases.length === 0;
  map.update(mapContent());
}

function press(button) {
  for (const other of button.parentElement.querySelectorAll("button")) {
    other.setAttribute("aria-pressed", String(other === button));
  }
}

for (const button of document.querySelectorAll(".toolbar button")) {
  button.addEventListener("click", () => {
    press(button);
    const { outcome, group, overlay } = button.dataset;
    if (overlay !== undefined) document.body.dataset.overlay = overlay;
    if (outcome !== undefined) choice.outcome = outcome;
    if (group !== undefined) choice.group = group;
    if (overlay === undefined) filter();
  });
}

for (const button of document.querySelectorAll(".locate")) {
  button.addEventListener("click", () => {
    const query = data.queries.find((query) => String(query.id) === button.dataset.query);
    map.select(query.id);
    map.fit([query, ...(query.found ? [{ x: query.found[0], y: query.found[1] }] : [])]);
    document.getElementById("where").scrollIntoView();
    document.getElementById("map").focus({ preventScroll: true });
  });
}

/* Light up one region of each photograph of a pair. */
function light(pair, boxes, regions) {
  for (const element of pair.querySelectorAll(".region")) {
    const side = Number(element.dataset.side);
    const [left, top, right, bottom] = boxes[side][regions[side]];
    element.style.inset = `${100 * top}% ${100 - 100 * right}% ${100 - 100 * bottom}% ${100 * left}%`;
  }
}

function drawClusters(canvas, only) {
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const clusters = new Uint16Array(bytes(canvas.dataset.clusters).buffer);
  const weights = bytes(canvas.dataset.weights);
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  clusters.forEach((cluster, i) => {
    const colour = parseInt(data.colours[cluster].slice(1), 16);
    const strength = only === null ? 0.55 : cluster === only ? 0.9 : 0;
    image.data.set([colour >> 16, (colour >> 8) & 255, colour & 255, strength * weights[i]], 4 * i);
  });
  context.putImageData(image, 0, 0);
}

for (const pair of document.querySelectorAll(".pair[data-pair]")) {
  const { boxes, best } = JSON.parse(pair.dataset.pair);
  const canvases = [...pair.querySelectorAll("canvas")];
  light(pair, boxes, best);
  canvases.forEach((canvas) => drawClusters(canvas, null));
  const toggle = (button, siblings, on, off) => {
    const pressed = button.getAttribute("aria-pressed") === "true";
    siblings.forEach((other) => other.setAttribute("aria-pressed", String(other === button && !pressed)));
    if (pressed) off();
    else on();
  };
  const cells = [...pair.querySelectorAll("[data-region]")];
  for (const cell of cells) {
    const show = () => light(pair, boxes, [0, Number(cell.dataset.region)]);
    cell.addEventListener("click", () => toggle(cell, cells, show, () => light(pair, boxes, best)));
  }
  const chips = [...pair.querySelectorAll("[data-cluster]")];
  for (const chip of chips) {
    const draw = (only) => canvases.forEach((canvas) => drawClusters(canvas, only));
    chip.addEventListener("click", () => toggle(chip, chips, () => draw(Number(chip.dataset.cluster)), () => draw(null)));
  }
}

filter();
