"use strict";

/* The coverage map of an index, its gaps numbered as in the list below it. */

const data = JSON.parse(document.getElementById("data").textContent);
const drawn = coverage(data);
const gaps = drawn.points.filter((point) => point.kind === "gap");
gaps.forEach((gap, i) => Object.assign(gap, { id: i + 1, label: String(i + 1) }));

const map = drawMap(document.getElementById("map"), { ...drawn, onSelect: showGap });

function showGap(number) {
  document.getElementById(`gap-${number}`).focus();
}

function showOnMap(points) {
  map.fit(points);
  document.getElementById("where").scrollIntoView();
  document.getElementById("map").focus({ preventScroll: true });
}

for (const button of document.querySelectorAll(".locate[data-gap]")) {
  const gap = gaps[button.dataset.gap - 1];
  button.addEventListener("click", () => {
    map.select(gap.id);
    showOnMap([{ ...gap, r: 50 }]);
  });
}

for (const button of document.querySelectorAll(".locate[data-ends]")) {
  const ends = JSON.parse(button.dataset.ends).map(([x, y]) => ({ x, y }));
  button.addEventListener("click", () => showOnMap(ends));
}
