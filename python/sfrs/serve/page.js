/* The page of sfrs serve: a photo goes to POST /locate, its answer to the map and the cards. */

const byId = (id) => document.getElementById(id);
const TYPES = ["image/jpeg", "image/png", "image/webp"];
const RETRIES = 5;
const RADIUS = 25; // metres that a location's confidence is about, as in sfrs.location
const CLOSEST = 20; // metres around every mark that the map shows

const page = {
  about: null, // GET /health
  points: [], // the index's positions
  map: null,
  photo: null, // the File
  url: "", // of the photo, for img elements
  request: null, // AbortController of the one under way
  found: null, // the answer
  match: 0, // which match is shown beside the photo
  region: null, // which region of the photo; null: the two that agree most
};

function make(name, attributes = {}, ...children) {
  const svg = ["svg", "rect", "path"].includes(name);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== false && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

function say(text, error = false) {
  byId("status").hidden = !text;
  byId("status").textContent = text;
  byId("status").classList.toggle("error", error);
}

/* Taking a photo. */

function take(file) {
  if (!file) return;
  if (file.type && !TYPES.includes(file.type)) {
    say(`${file.name || "This"} is ${file.type}; please take a JPEG, PNG or WebP photo.`, true);
    return;
  }
  const most = page.about?.limits.megabytes;
  if (file.size > most * 1e6) {
    say(`${file.name} has ${(file.size / 1e6).toFixed(1)} MB; ${most} MB are the limit here.`, true);
    return;
  }
  if (page.url) URL.revokeObjectURL(page.url);
  page.photo = file;
  page.url = URL.createObjectURL(file);
  const image = make("img", { src: page.url, alt: `Your photo, ${file.name || "pasted"}` });
  image.addEventListener("error", () => image.remove());
  byId("drop").classList.add("filled");
  byId("drop").querySelector(".invitation").hidden = true;
  byId("drop").querySelector("img")?.remove();
  byId("drop").append(image);
  byId("another").hidden = false;
  locate();
}

async function locate() {
  if (!page.photo) return;
  page.request?.abort();
  const request = (page.request = new AbortController());
  byId("drop").classList.add("working");
  say("Looking for it\u2026");
  try {
    const found = await ask(request.signal);
    if (page.request !== request) return;
    say("");
    show(found);
  } catch (error) {
    if (error.name === "AbortError" || page.request !== request) return;
    clear();
    say(error.message, true);
  }
  byId("drop").classList.remove("working");
}

async function ask(signal) {
  const parameters = new URLSearchParams({ top: byId("top").value });
  if (byId("rerank").checked) parameters.set("rerank", "regions");
  const headers = { "Content-Type": page.photo.type || "application/octet-stream" };
  for (let attempt = 0; ; attempt++) {
    const answer = await reach(`/locate?${parameters}`, { method: "POST", body: page.photo, headers, signal });
    if (answer.ok) return answer.json();
    const { error } = await answer.json().catch(() => ({ error: `The server answered ${answer.status}.` }));
    if (answer.status !== 503 || attempt === RETRIES) throw new Error(error);
    const seconds = Number(answer.headers.get("Retry-After")) || 1;
    say(`Others are ahead; trying again in ${seconds} s\u2026`);
    await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
    signal.throwIfAborted();
  }
}

async function reach(address, options) {
  try {
    return await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached. Is sfrs serve still running?");
  }
}

/* Showing the answer. */

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

function showPlace({ location, milliseconds, error }) {
  const card = byId("place");
  card.hidden = false;
  if (!isPlaced(location)) {
    card.replaceChildren(make("h2", {}, "Somewhere"), "The images it matches carry no coordinates.");
    return;
  }
  const metres = [`${location.easting.toFixed(1)} E`, `${location.northing.toFixed(1)} N`];
  const zone = page.about?.zone ? `UTM ${page.about.zone}: ` : "";
  const degrees = typeof location.latitude === "number" && typeof location.longitude === "number";
  const head = degrees ? `${location.latitude.toFixed(6)}, ${location.longitude.toFixed(6)}` : metres.join(", ");
  const spent = Object.values(milliseconds).reduce((sum, part) => sum + part, 0);
  const share = Math.round(100 * location.confidence);
  const doubtful = location.confidence < 0.5;
  card.replaceChildren(
    make("h2", {}, make("span", { id: "where" }, head), make("button", { type: "button", class: "plain", onclick: () => copy(head) }, "Copy")),
    degrees ? make("p", { class: "metres" }, zone + metres.join(", ")) : "",
    make("div", { class: doubtful ? "meter doubtful" : "meter" }, make("i")),
    make("span", {}, `Within ${RADIUS} m of this: ${share} % likely`, doubtful ? ". Several places look alike." : ""),
    make("dl", {},
      make("dt", {}, "Spread"), make("dd", {}, `${length(location.spread)}, of the images it was made of`),
      ...(Number.isFinite(error) ? [make("dt", {}, "GPS"), make("dd", {}, `of the photo itself: ${length(error)} away`)] : []),
      make("dt", {}, "Took"), make("dd", { title: Object.entries(milliseconds).map(([name, part]) => `${name} ${part} ms`).join("\n") },
        `${Math.round(spent)} ms: ${Object.entries(milliseconds).map(([name, part]) => `${name} ${Math.round(part)}`).join(", ")}`)),
  );
  card.querySelector(".meter i").style.width = `${share}%`;
}

function isPlaced(place) {
  return Number.isFinite(place?.easting) && Number.isFinite(place?.northing);
}

function length(metres) {
  return metres < 1000 ? `${metres < 10 ? metres.toFixed(1) : Math.round(metres)} m` : `${(metres / 1000).toFixed(1)} km`;
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
    const key = `${match.easting.toFixed(1)} ${match.northing.toFixed(1)}`;
    if (!spots.has(key)) spots.set(key, { x: match.easting, y: match.northing, ranks: [] });
    spots.get(key).ranks.push(i + 1);
  });
  const marks = [...spots.values()].map(({ x, y, ranks }) => ({
    x, y, kind: "match", id: ranks[0] - 1, label: String(ranks[0]), ranks,
    title: ranks.length > 1 ? `Matches ${ranks.join(", ")}` : `Match ${ranks[0]}`,
  }));
  const estimate = isPlaced(location)
    ? [{ x: location.easting, y: location.northing, kind: "estimate", r: Math.max(location.spread, 1), title: `Estimate, spread ${length(location.spread)}` }]
    : [];
  const own = isPlaced(truth)
    ? [{ x: truth.easting, y: truth.northing, kind: "near", title: `What the photo itself says, ${length(error)} from the estimate` }]
    : [];
  const lines = estimate.flatMap(({ x, y }) => marks.map((mark) => ({ x1: x, y1: y, x2: mark.x, y2: mark.y, kind: "match" })));
  // The best match is drawn last, on top.
  page.marks = marks.reverse();
  if (!page.map) return; // start() shows it as soon as there is one
  page.map.update({ points: [...page.points, ...estimate, ...own, ...page.marks], lines });
  const shown = [...estimate, ...own, ...page.marks].map(({ x, y, r = 0 }) => ({ x, y, r: Math.max(r, CLOSEST) }));
  // The answer changes the page's layout, and the map learns of its new size two frames later.
  if (shown.length) requestAnimationFrame(() => requestAnimationFrame(() => page.map.fit(shown)));
}

/* The matches. */

function picture(row, side, alt) {
  const image = make("img", { src: `/images/${row}?side=${side}`, alt });
  image.addEventListener("error", () => image.replaceWith(make("span", { class: "gone" }, "This photo is not where it was when it was indexed.")));
  return image;
}

function showMatches({ location, matches, region_boxes: regions }) {
  byId("matches").replaceChildren(
    ...matches.map((match, i) => {
      const away = isPlaced(match) && isPlaced(location)
        ? `${length(Math.hypot(match.easting - location.easting, match.northing - location.northing))} away`
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
  [...byId("matches").querySelectorAll("button")].forEach((button, j) => button.setAttribute("aria-pressed", String(i === j)));
  const mark = page.marks.find((mark) => mark.ranks.includes(i + 1));
  if (mark) page.map?.select(mark.id);
  showPair();
  if (scroll) byId("pair").scrollIntoView({ block: "nearest", behavior: "smooth" });
}

/* Photo and match side by side, with the regions that agree. */

function showPair() {
  const { matches, region_boxes: regions } = page.found;
  const match = matches[page.match];
  const title = make("h2", {}, `Your photo and match ${page.match + 1}`);
  const sides = (mine, theirs) => make("div", { class: "sides" },
    side("Your photo", make("img", { src: page.url, alt: "Your photo" }), mine),
    side(`Match ${page.match + 1}: ${match.file ?? `image ${match.row}`}`, picture(match.row, 640, `Match ${page.match + 1}`), theirs));
  if (!match.explanation) {
    byId("pair").replaceChildren(title, make("p", { class: "quiet" }, `Similarity ${match.similarity.toFixed(3)}.`), sides());
    return;
  }
  const { best_part: part, similarities } = match.explanation;
  const mine = page.region ?? part[0];
  const theirs = page.region === null ? part[1] : similarities[mine].indexOf(Math.max(...similarities[mine]));
  const words = page.region === null ? "agree most" : "is the most like it";
  const sentence = page.region === null
    ? `The ${regions[mine].name} of your photo and the ${regions[theirs].name} of the match ${words}: `
    : `To the ${regions[mine].name} of your photo, the ${regions[theirs].name} of the match ${words}: `;
  byId("pair").replaceChildren(
    title,
    make("p", {}, sentence, make("b", {}, similarities[mine][theirs].toFixed(2)), `; the whole images: ${similarities[0][0].toFixed(2)}.`),
    choices(regions, mine),
    sides(regions[mine].box, regions[theirs].box),
  );
}

function choices(regions, mine) {
  const buttons = regions.map((region, i) => {
    const name = `Show what is like the ${region.name} of your photo`;
    return make("button", { type: "button", "aria-label": name, title: name, "aria-pressed": String(i === mine), onclick: () => { page.region = i; showPair(); byId("pair").querySelectorAll(".choices button")[i].focus(); } },
      glyph(region));
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

/* Wiring. */

function listen() {
  const pick = () => byId("picker").click();
  byId("drop").addEventListener("click", pick);
  byId("another").addEventListener("click", pick);
  byId("picker").addEventListener("change", (event) => {
    take(event.target.files[0]);
    event.target.value = ""; // so that the same file can be chosen again
  });
  addEventListener("paste", (event) => take([...event.clipboardData.files].find((file) => file.type.startsWith("image/"))));
  addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dragging");
  });
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    if (event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
  });
  byId("top").addEventListener("change", locate);
  byId("rerank").addEventListener("change", locate);
}

async function start() {
  listen();
  byId("curl").textContent = `curl -F photo=@photo.jpg "${location.origin}/locate?top=3"`;
  try {
    const [about, map] = await Promise.all(["/health", "/map"].map(async (address) => (await reach(address)).json()));
    page.about = about;
    page.points = map.points.map(([, x, y]) => ({ x, y, kind: "database" }));
    byId("about").textContent = `among ${about.images.toLocaleString("en")} indexed photos${about.zone ? `, UTM ${about.zone}` : ""}`;
  } catch (error) {
    say(error.message, true);
  }
  page.map = drawMap(byId("map"), { points: page.points, lines: [], onSelect: (id) => choose(Number(id), true) });
  if (page.found) showMap(page.found);
}

start();
