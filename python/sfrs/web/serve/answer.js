/* Showing an answer of POST /locate: place, map, matches, and photo and match side by side. */

const RADIUS = 25; // metres that a location's confidence is about, as in sfrs.retrieval.location
const NOT_IN_INDEX = "This place is not in the index, by all that it knows. What looks most like it:";
const CLOSEST = 20; // metres around every mark that the map shows
const FURTHEST = 2000; // metres that the photo's own position may be away for the map to show it as well

function clear() {
  page.found = null;
  byId("place").hidden = true;
  byId("answer").hidden = true;
  document.body.classList.remove("located");
  page.map?.update({ points: page.points, lines: [] });
}

function show(found) {
  page.found = found;
  document.body.classList.add("located");
  showPlace(found);
  showMap(found);
  showMatches(found);
  byId("answer").hidden = found.matches.length === 0;
  choose(0);
}

function showPlace({ location, zone: ownZone, milliseconds, error, left_out: leftOut, in_index: inIndex }) {
  const card = byId("place");
  card.hidden = false;
  if (!isPlaced(location)) {
    card.replaceChildren(make("h2", {}, "Somewhere"), "The images it matches carry no coordinates.");
    return;
  }
  const metres = `${location.easting.toFixed(1)} E, ${location.northing.toFixed(1)} N`;
  const known = typeof location.latitude === "number";
  const head = known ? `${location.latitude.toFixed(6)}, ${location.longitude.toFixed(6)}` : metres;
  const zone = ownZone ? `UTM ${ownZone}: ` : "";
  const share = Math.round(100 * location.confidence);
  const doubtful = location.confidence < 0.5;
  const copies = make("button", { type: "button", class: "plain", onclick: () => copy(head) }, "Copy");
  const bar = make("i");
  bar.style.width = `${share}%`;
  card.replaceChildren(
    inIndex === false ? make("p", { id: "elsewhere" }, NOT_IN_INDEX) : "",
    make("h2", {}, make("span", { id: "where" }, head), copies),
    known ? make("p", { class: "metres" }, zone + metres) : "",
    make("div", { class: doubtful ? "meter doubtful" : "meter" }, bar),
    make("span", {}, `Within ${RADIUS} m of this: ${share} % likely`, doubtful && inIndex !== false ? ". Several places look alike." : ""),
    make("dl", {}, ...facts(location, milliseconds, error, leftOut.length)),
  );
}

function facts(location, milliseconds, error, leftOut) {
  const parts = Object.entries(milliseconds);
  const spent = parts.reduce((sum, [, part]) => sum + part, 0);
  const times = parts.map(([name, part]) => `${name} ${Math.round(part)}`).join(", ");
  const lines = [["Spread", `${metresOf(location.spread)}, of the images it was made of`]];
  if (Number.isFinite(error)) lines.push(["GPS", `of the photo itself: ${metresOf(error)} away`]);
  if (leftOut) lines.push(["Left out", `${leftOut} indexed ${leftOut === 1 ? "photo" : "photos"}, gone since`]);
  lines.push(["Took", `${Math.round(spent)} ms: ${times}`]);
  return lines.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]);
}

function isPlaced(place) {
  return Number.isFinite(place?.easting) && Number.isFinite(place?.northing);
}

function onMap({ x, y, easting, northing }) {
  return { x: x ?? easting, y: y ?? northing }; // x, y: in an index of several UTM zones
}

function metresOf(metres) {
  if (metres >= 1000) return `${(metres / 1000).toFixed(1)} km`;
  return `${metres < 10 ? metres.toFixed(1) : Math.round(metres)} m`;
}

async function copy(text) {
  const button = byId("place").querySelector("button");
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    // Without TLS, other machines' browsers lend no clipboard: then the words are selected to be copied.
    getSelection().selectAllChildren(byId("where"));
    button.textContent = "Press Ctrl+C";
  }
  setTimeout(() => (button.textContent = "Copy"), 2000);
}

/* The map: matches taken at one spot share a mark, that of the best of them. */

function showMap({ location, matches, truth, error }) {
  const spots = new Map();
  matches.forEach((match, i) => {
    if (!isPlaced(match)) return;
    const { x, y } = onMap(match);
    const key = `${x.toFixed(1)} ${y.toFixed(1)}`;
    if (!spots.has(key)) spots.set(key, { x, y, ranks: [] });
    spots.get(key).ranks.push(i + 1);
  });
  const marks = [...spots.values()].map(({ x, y, ranks }) => ({
    x, y, kind: "match", id: ranks[0] - 1, label: String(ranks[0]), ranks,
    title: ranks.length > 1 ? `Matches ${ranks.join(", ")}` : `Match ${ranks[0]}`,
  }));
  const estimate = [];
  if (isPlaced(location)) {
    const { spread } = location;
    estimate.push({ ...onMap(location), kind: "estimate", r: Math.max(spread, 1), title: `Estimate, spread ${metresOf(spread)}` });
  }
  const own = [];
  byId("own").hidden = !isPlaced(truth);
  if (isPlaced(truth)) {
    const title = `What the photo itself says, ${metresOf(error)} from the estimate`;
    own.push({ ...onMap(truth), kind: "near", title });
  }
  const lines = estimate.flatMap((from) =>
    marks.map((to) => ({ x1: from.x, y1: from.y, x2: to.x, y2: to.y, kind: "match" })),
  );
  // The best match is drawn last, on top.
  page.marks = marks.reverse();
  byId("alike").hidden = true; // only the lines of this answer are drawn
  if (!page.map) return; // start() shows it as soon as there is one
  page.map.update({ points: [...page.points, ...estimate, ...own, ...page.marks], lines });
  const near = [...estimate, ...(error < FURTHEST ? own : []), ...page.marks];
  const shown = near.map(({ x, y, r = 0 }) => ({ x, y, r: Math.max(r, CLOSEST) }));
  // The answer changes the page's layout, and the map learns of its new size two frames later.
  if (shown.length) requestAnimationFrame(() => requestAnimationFrame(() => page.map.fit(shown)));
}

/* The matches. */

function picture(row, side, alt) {
  const image = make("img", { src: `/images/${row}?side=${side}`, alt });
  const words = "This photo is not where it was when it was indexed.";
  image.addEventListener("error", () => image.replaceWith(make("span", { class: "gone" }, words)));
  return image;
}

function showMatches({ location, matches, region_boxes: regions }) {
  byId("matches").replaceChildren(
    ...matches.map((match, i) => {
      const away = isPlaced(match) && isPlaced(location)
        ? `${metresOf(match.away)} away`
        : "no place";
      const part = match.explanation ? glyph(regions[match.explanation.best_part[1]]) : "";
      return make("li", {},
        make("button", { type: "button", class: "match card", "aria-pressed": "false", onclick: () => choose(i, true) },
          picture(match.row, 640, `Match ${i + 1}`),
          make("span", { class: "words" },
            make("span", {}, make("i", { class: "number" }, String(i + 1)), make("b", {}, match.similarity.toFixed(3))),
            make("span", { class: "quiet" }, make("span", {}, away), part))));
    }),
  );
}

function choose(i, scroll = false) {
  page.match = i;
  page.region = null;
  const { matches } = page.found;
  if (!matches.length) return;
  byId("matches").querySelectorAll("button").forEach((button, j) => {
    button.setAttribute("aria-pressed", String(i === j));
  });
  const mark = page.marks.find((mark) => mark.ranks.includes(i + 1));
  if (mark) page.map?.select(mark.id);
  showPair();
  if (scroll) byId("pair").scrollIntoView({ block: "nearest", behavior: "smooth" });
}

/* Photo and match side by side, with the regions that agree. */

function showPair() {
  const { matches, region_boxes: regions } = page.found;
  const match = matches[page.match];
  const name = `Match ${page.match + 1}`;
  const title = make("h2", {}, `Your photo and match ${page.match + 1}`);
  const sides = (mine, theirs) => make("div", { class: "sides" },
    side("Your photo", make("img", { src: page.url, alt: "Your photo" }), mine),
    side(`${name}: ${match.file}`, picture(match.row, 640, name), theirs));
  if (!match.explanation) {
    const words = make("p", { class: "quiet" }, `Similarity ${match.similarity.toFixed(3)}.`);
    byId("pair").replaceChildren(title, words, sides());
    return;
  }
  const { best_part: part, similarities } = match.explanation;
  const mine = page.region ?? part[0];
  const theirs = page.region === null ? part[1] : similarities[mine].indexOf(Math.max(...similarities[mine]));
  const sentence = page.region === null
    ? `The ${regions[mine].name} of your photo and the ${regions[theirs].name} of the match agree most: `
    : `To the ${regions[mine].name} of your photo, the ${regions[theirs].name} of the match is the most alike: `;
  const agreement = make("b", {}, similarities[mine][theirs].toFixed(2));
  byId("pair").replaceChildren(
    title,
    make("p", {}, sentence, agreement, `; the whole images: ${similarities[0][0].toFixed(2)}.`),
    choices(regions, mine),
    sides(regions[mine].box, regions[theirs].box),
  );
}

function choices(regions, mine) {
  const change = (i) => {
    page.region = i;
    showPair();
    byId("pair").querySelectorAll(".choices button")[i].focus();
  };
  const buttons = regions.map((region, i) => {
    const title = `Show what is like the ${region.name} of your photo`;
    const attributes = { type: "button", title, "aria-label": title, "aria-pressed": String(i === mine) };
    return make("button", { ...attributes, onclick: () => change(i) }, glyph(region));
  });
  return make("div", { class: "choices", role: "group", "aria-label": "Region of your photo" }, ...buttons);
}

function glyph({ box: [left, top, right, bottom] }) {
  const part = { x: 1 + 24 * left, y: 1 + 18 * top, width: 24 * (right - left), height: 18 * (bottom - top) };
  return make("svg", { class: "glyph", viewBox: "0 0 26 20", "aria-hidden": "true" },
    make("rect", { class: "part", ...part }), make("rect", { x: 1, y: 1, width: 24, height: 18, rx: 2 }));
}

function side(caption, image, box) {
  const framed = make("span", { class: "framed" }, image);
  image.addEventListener("load", () => framed.style.setProperty("--ratio", image.naturalWidth / image.naturalHeight));
  if (box) {
    const [left, top, right, bottom] = box;
    const inner = `M${left} ${top}V${bottom}H${right}V${top}Z`;
    framed.append(make("svg", { viewBox: "0 0 1 1", preserveAspectRatio: "none", "aria-hidden": "true" },
      make("path", { class: "shade", "fill-rule": "evenodd", d: `M0 0H1V1H0Z${inner}` }),
      make("path", { class: "frame", d: inner })));
  }
  return make("figure", {}, make("figcaption", { class: "quiet" }, caption), framed);
}
