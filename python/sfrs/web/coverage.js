"use strict";

/* The coverage map of an index: its photographs, places taken for each other, and places that want photographs. */

function gapTitle(photos) {
  return `Photograph here next: ${photos} indexed ${photos === 1 ? "photo is" : "photos are"} not found by others`;
}

/* Points and lines for drawMap, from overview.py. */
function coverage({ points, gaps, look_alikes }) {
  return {
    points: [
      ...points.map(([, x, y]) => ({ x, y, kind: "database" })),
      ...gaps.map(([x, y, photos]) => ({ x, y, kind: "gap", title: gapTitle(photos) })),
    ],
    lines: look_alikes.map(([x1, y1, x2, y2]) => ({ x1, y1, x2, y2, kind: "alike" })),
  };
}
