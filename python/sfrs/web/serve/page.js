/* The page of sfrs serve: a photo goes to POST /locate, its answer to the map and the cards. */

const byId = (id) => document.getElementById(id);
const TYPES = ["image/jpeg", "image/png", "image/webp"];
const RETRIES = 5;

const page = {
  about: null, // GET /health
  points: [], // the index's positions
  lookAlikes: [], // lines between places that the self-test took for each other
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
  image.addEventListener("error", () => image.isConnected && fill(null));
  fill(image);
  locate();
}

/* Put a photo into the drop zone; null, where the browser cannot show it, brings the invitation back. */
function fill(image) {
  const drop = byId("drop");
  drop.querySelector("img")?.remove();
  drop.classList.toggle("filled", image !== null);
  drop.querySelector(".invitation").hidden = image !== null;
  byId("another").hidden = image === null;
  if (image) drop.append(image);
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
  parameters.set("rerank", byId("rerank").checked ? "regions" : "none");
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

/* Wiring. */

function isLoopback(host) {
  return host === "localhost" || host === "[::1]" || /^127(\.\d{1,3}){3}$/.test(host);
}

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
  if (isLoopback(location.hostname)) byId("promise").textContent = "It stays on this computer.";
  byId("curl").textContent = `curl -F photo=@photo.jpg "${location.origin}/locate?top=3"`;
  try {
    const [about, map] = await Promise.all(["/health", "/map"].map(async (address) => (await reach(address)).json()));
    page.about = about;
    const { points, lines } = coverage(map);
    page.points = points;
    page.lookAlikes = lines;
    byId("gaps").hidden = map.gaps.length === 0;
    byId("alike").hidden = map.look_alikes.length === 0;
    byId("rerank").checked = about.reranks;
    const zone = about.zone ? `, UTM ${about.zone}` : "";
    byId("about").textContent = `among ${about.images.toLocaleString("en")} indexed photos${zone}`;
  } catch (error) {
    say(error.message, true);
  }
  page.map = drawMap(byId("map"), { points: page.points, lines: page.lookAlikes, onSelect: (id) => choose(Number(id), true) });
  if (page.found) showMap(page.found);
}

start();
