"use strict";

/* A map of points in metres, y up, without tiles: pan, zoom, scale bar.

   drawMap(svg, {
     points: [{x, y, kind, title, id, label, r}],   title: shown on hover; id: selectable;
                                                    label: a numbered marker; r: also a circle of r metres
     lines: [{x1, y1, x2, y2, kind}],
     onSelect(id),
   }) -> {update({points, lines}), select(id), fit(points)}

   A kind is a class: style.css colours .map-KIND. Drag or arrow keys move; buttons, +, -, pinch, Ctrl and
   wheel (the wheel alone once the map has the focus) zoom; 0 shows everything. */

function drawMap(svg, { points = [], lines = [], onSelect = () => {} }) {
  return new PlaceMap(svg, points, lines, onSelect);
}

class PlaceMap {
  // Each mark is an element that keyboards reach; beyond this many, points are drawn in bulk.
  static MARKS_AT_MOST = 300;
  static SQUARES = new Set(["near", "far", "wrong", "gap"]); // told apart without colour
  static STEP = 60; // pixels an arrow key moves
  static MOVES = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

  constructor(svg, points, lines, onSelect) {
    Object.assign(this, { svg, points, lines, onSelect, selected: null, marks: [] });
    const bounds = mapBounds(points, lines);
    this.origin = { x: (bounds.left + bounds.right) / 2, y: (bounds.top + bounds.bottom) / 2 };
    this.view = { x: 0, y: 0, scale: 0 }; // centre in metres from the origin, pixels per metre
    this.size = { width: 0, height: 0 };
    svg.replaceChildren();
    svg.classList.add("map");
    if (!svg.hasAttribute("tabindex")) svg.setAttribute("tabindex", "0");
    this.grid = mapElement("path", { class: "map-grid" }, svg);
    const layer = (name) => mapElement("g", { class: name }, svg);
    this.world = layer("map-world");
    this.front = layer("map-marks");
    this.scaleBar = layer("map-scale");
    this.controls = layer("map-controls");
    this.tip = layer("map-tip");
    followPointers(svg, this);
    svg.addEventListener("keydown", (event) => this.pressed(event));
    this.update({});
    this.resize();
    new ResizeObserver(() => this.resize()).observe(svg);
  }

  update({ points = this.points, lines = this.lines }) {
    Object.assign(this, { points, lines });
    const selectable = points.reduce((count, point) => count + (point.id !== undefined), 0);
    const few = selectable <= PlaceMap.MARKS_AT_MOST;
    this.isMark = (point) => point.label !== undefined || (few && point.id !== undefined);
    this.showTip(null);
    this.drawWorld();
    this.drawMarks();
    this.render();
  }

  select(id) {
    this.selected = id;
    this.showSelected();
    const point = this.points.find((point) => point.id !== undefined && String(point.id) === String(id));
    if (!point || !this.view.scale) return;
    const [x, y] = this.toScreen(point.x, point.y);
    if (x < 0 || y < 0 || x > this.size.width || y > this.size.height) {
      this.view.x = point.x - this.origin.x;
      this.view.y = point.y - this.origin.y;
      this.render();
    }
  }

  /* Show all of the given points, or of the map's points and lines. */
  fit(points = null) {
    const bounds = points ? mapBounds(points, []) : mapBounds(this.points, this.lines);
    const room = { width: Math.max(1, this.size.width - 56), height: Math.max(1, this.size.height - 72) };
    const [width, height] = [bounds.right - bounds.left, bounds.bottom - bounds.top];
    // Not so close that one point, or two beside each other, fill the map.
    const closest = Math.min(20, Math.max(room.width, room.height) / 60);
    const scale = Math.min(room.width / (width || 1e-9), room.height / (height || 1e-9), closest);
    const [x, y] = [(bounds.left + bounds.right) / 2, (bounds.top + bounds.bottom) / 2];
    Object.assign(this.view, { x: x - this.origin.x, y: y - this.origin.y, scale });
    this.render();
  }

  zoom(factor, x = this.size.width / 2, y = this.size.height / 2) {
    const { view, size } = this;
    const scale = Math.min(100, Math.max(1e-5, view.scale * factor));
    const [dx, dy] = [x - size.width / 2, size.height / 2 - y];
    view.x += dx / view.scale - dx / scale; // what is under the pointer stays there
    view.y += dy / view.scale - dy / scale;
    view.scale = scale;
    this.render();
  }

  pan(dx, dy) {
    this.view.x -= dx / this.view.scale;
    this.view.y += dy / this.view.scale;
    this.render();
  }

  toScreen(x, y) {
    const { origin, view, size } = this;
    return [
      size.width / 2 + (x - origin.x - view.x) * view.scale,
      size.height / 2 - (y - origin.y - view.y) * view.scale,
    ];
  }

  drawWorld() {
    const bulk = {};
    const add = (name, d) => (bulk[name] ??= []).push(d);
    // Relative to the origin: browsers keep 24 bits of a coordinate, half a metre of a UTM northing.
    const at = (x, y) => `${(x - this.origin.x).toFixed(3)} ${(y - this.origin.y).toFixed(3)}`;
    for (const line of this.lines) {
      add(`map-line map-${line.kind}`, `M${at(line.x1, line.y1)}L${at(line.x2, line.y2)}`);
    }
    for (const point of this.points) {
      if (!this.isMark(point)) add(`map-dot map-${point.kind}`, `M${at(point.x, point.y)}h.001`);
    }
    this.world.replaceChildren();
    // A thousand lines would hide what they connect.
    this.world.style.setProperty("--line-opacity", Math.max(0.14, Math.min(0.5, 40 / (this.lines.length + 1))));
    for (const point of this.points.filter((point) => point.r)) {
      const circle = { cx: point.x - this.origin.x, cy: point.y - this.origin.y, r: point.r };
      mapElement("circle", { class: `map-spread map-${point.kind}`, ...circle }, this.world);
    }
    for (const [name, parts] of Object.entries(bulk)) {
      const cap = PlaceMap.SQUARES.has(name.split("map-").pop()) ? "square" : "round";
      mapElement("path", { class: name, d: parts.join(""), "stroke-linecap": cap }, this.world);
    }
  }

  drawMarks() {
    const focused = document.activeElement?.closest?.(".map-mark")?.dataset.id;
    this.front.replaceChildren();
    this.marks = this.points.filter(this.isMark).map((point) => ({ point, mark: this.drawMark(point) }));
    this.showSelected();
    if (focused === undefined) return;
    const again = this.marks.find(({ point }) => String(point.id) === focused);
    again?.mark.focus({ preventScroll: true });
  }

  drawMark(point) {
    const attributes = { class: `map-mark map-${point.kind}`, "aria-label": point.title ?? point.label ?? "" };
    const mark = mapElement("g", attributes, this.front);
    if (point.label !== undefined) {
      mapElement("circle", { r: 10 }, mark);
      mapElement("text", { "text-anchor": "middle", dy: "0.35em" }, mark).textContent = point.label;
    } else if (PlaceMap.SQUARES.has(point.kind)) {
      mapElement("rect", { x: -5, y: -5, width: 10, height: 10, transform: "rotate(45)" }, mark);
    } else {
      mapElement("circle", { r: 6 }, mark);
    }
    if (point.id === undefined) return mark;
    mark.setAttribute("tabindex", "0");
    mark.setAttribute("role", "button");
    mark.dataset.id = point.id;
    onPress(mark, () => this.choose(point));
    mark.addEventListener("focus", () => this.showTip(point));
    mark.addEventListener("blur", () => this.showTip(null));
    return mark;
  }

  showSelected() {
    const wanted = this.selected === null ? null : String(this.selected);
    for (const { point, mark } of this.marks) {
      mark.classList.toggle("map-selected", wanted !== null && String(point.id) === wanted);
    }
  }

  choose(point) {
    this.select(point.id);
    this.onSelect(point.id);
  }

  render() {
    if (!this.view.scale) return;
    const { scale } = this.view;
    const [x, y] = this.toScreen(this.origin.x, this.origin.y);
    this.world.setAttribute("transform", `translate(${x} ${y}) scale(${scale} ${-scale})`);
    for (const { point, mark } of this.marks) {
      mark.setAttribute("transform", `translate(${this.toScreen(point.x, point.y)})`);
    }
    const metres = roundLength(90 / scale);
    this.drawGrid(metres);
    this.drawScale(metres);
    if (this.tipPoint) this.showTip(this.tipPoint);
  }

  drawGrid(metres) {
    const { origin, view, size } = this;
    const [half, tall] = [size.width / 2 / view.scale, size.height / 2 / view.scale];
    const [cx, cy] = [origin.x + view.x, origin.y + view.y];
    let d = "";
    for (let x = Math.ceil((cx - half) / metres) * metres; x < cx + half; x += metres) {
      d += `M${this.toScreen(x, 0)[0].toFixed(1)} 0v${size.height}`;
    }
    for (let y = Math.ceil((cy - tall) / metres) * metres; y < cy + tall; y += metres) {
      d += `M0 ${this.toScreen(0, y)[1].toFixed(1)}h${size.width}`;
    }
    this.grid.setAttribute("d", d);
  }

  drawScale(metres) {
    const length = metres * this.view.scale;
    this.scaleBar.replaceChildren();
    this.scaleBar.setAttribute("transform", `translate(14 ${this.size.height - 14})`);
    mapElement("path", { d: `M0 -6V0H${length}V-6` }, this.scaleBar);
    const text = mapElement("text", { x: length / 2, y: -8, "text-anchor": "middle" }, this.scaleBar);
    text.textContent = formatMetres(metres);
  }

  drawControls() {
    this.controls.replaceChildren();
    const buttons = [
      ["+", "Zoom in", () => this.zoom(1.6)],
      ["\u2212", "Zoom out", () => this.zoom(1 / 1.6)],
      ["\u2922", "Show everything", () => this.fit()],
    ];
    buttons.forEach(([sign, name, action], i) => {
      const attributes = { class: "map-button", tabindex: 0, role: "button", "aria-label": name };
      const button = mapElement("g", attributes, this.controls);
      button.setAttribute("transform", `translate(${this.size.width - 42} ${12 + 34 * i})`);
      mapElement("rect", { width: 30, height: 30, rx: 6 }, button);
      mapElement("text", { x: 15, y: 15, dy: "0.35em", "text-anchor": "middle" }, button).textContent = sign;
      button.addEventListener("click", action);
      onPress(button, action);
    });
  }

  nearest(x, y, reach, accepts) {
    let best = null;
    let least = reach * reach;
    for (const point of this.points) {
      if (!accepts(point)) continue;
      const [px, py] = this.toScreen(point.x, point.y);
      const distance = (px - x) ** 2 + (py - y) ** 2;
      if (distance <= least) [best, least] = [point, distance];
    }
    return best;
  }

  selectableAt(x, y) {
    return this.nearest(x, y, 14, (point) => point.id !== undefined);
  }

  click(x, y) {
    const point = this.selectableAt(x, y);
    if (point) this.choose(point);
  }

  hover(x, y) {
    const selectable = this.selectableAt(x, y);
    const point = selectable ?? this.nearest(x, y, 10, (point) => point.title !== undefined);
    if (point !== this.tipPoint) this.showTip(point);
    this.svg.classList.toggle("map-pointing", selectable !== null);
  }

  showTip(point) {
    const { tip, size } = this;
    this.tipPoint = point;
    tip.replaceChildren();
    if (!point?.title || !this.view.scale) return;
    const box = mapElement("rect", { rx: 5 }, tip);
    const text = mapElement("text", {}, tip);
    String(point.title)
      .split("\n")
      .forEach((line, i) => {
        mapElement("tspan", { x: 9, y: 18 + 17 * i }, text).textContent = line;
      });
    const { width, height } = text.getBBox();
    box.setAttribute("width", width + 18);
    box.setAttribute("height", height + 12);
    const [x, y] = this.toScreen(point.x, point.y);
    const left = Math.max(4, Math.min(x - width / 2 - 9, size.width - width - 22));
    const top = y - height - 26 < 4 ? y + 14 : y - height - 26;
    tip.setAttribute("transform", `translate(${left} ${top})`);
  }

  pressed(event) {
    const move = PlaceMap.MOVES[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (move) this.pan(PlaceMap.STEP * move[0], PlaceMap.STEP * move[1]);
    else if (event.key === "+" || event.key === "=") this.zoom(1.6);
    else if (event.key === "-") this.zoom(1 / 1.6);
    else if (event.key === "0") this.fit();
    else return;
    event.preventDefault();
  }

  resize() {
    const { width, height } = this.svg.getBoundingClientRect();
    if (!width || !height) return;
    this.size = { width, height };
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`); // what is printed is scaled from this
    this.drawControls();
    if (this.view.scale) this.render();
    else this.fit();
  }
}

function mapElement(name, attributes, parent) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  parent.append(element);
  return element;
}

function onPress(element, action) {
  element.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    action();
  });
}

function mapBounds(points, lines) {
  const bounds = { left: Infinity, right: -Infinity, top: Infinity, bottom: -Infinity };
  const include = (x, y, r = 0) => {
    bounds.left = Math.min(bounds.left, x - r);
    bounds.right = Math.max(bounds.right, x + r);
    bounds.top = Math.min(bounds.top, y - r);
    bounds.bottom = Math.max(bounds.bottom, y + r);
  };
  for (const point of points) include(point.x, point.y, point.r);
  for (const line of lines) {
    include(line.x1, line.y1);
    include(line.x2, line.y2);
  }
  return points.length || lines.length ? bounds : { left: -50, right: 50, top: -50, bottom: 50 };
}

function followPointers(svg, map) {
  const down = new Map(); // pointer id -> where it is
  let moved = 0;
  const place = (event) => {
    const box = svg.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  const spread = ([a, b]) => Math.hypot(a[0] - b[0], a[1] - b[1]);

  svg.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || event.target.closest(".map-button")) return;
    if (down.size === 0) moved = 0;
    down.set(event.pointerId, place(event));
  });
  svg.addEventListener("pointermove", (event) => {
    const before = down.get(event.pointerId);
    const now = place(event);
    if (!before) return map.hover(...now);
    const apart = down.size === 2 ? spread([...down.values()]) : 0;
    down.set(event.pointerId, now);
    moved += spread([now, before]);
    if (moved < 4) return;
    // Only now: captured at once, a click on a mark would not reach it.
    svg.setPointerCapture(event.pointerId);
    if (apart) {
      const [a, b] = [...down.values()];
      map.zoom(spread([a, b]) / apart, (a[0] + b[0]) / 2, (a[1] + b[1]) / 2);
    }
    map.pan((now[0] - before[0]) / down.size, (now[1] - before[1]) / down.size);
  });
  const up = (event) => {
    if (down.delete(event.pointerId) && event.type === "pointerup" && moved < 4) map.click(...place(event));
  };
  svg.addEventListener("pointerup", up);
  svg.addEventListener("pointercancel", up);
  svg.addEventListener("pointerleave", () => map.showTip(null));
  const wheel = (event) => {
    // Without the focus the page scrolls past the map.
    if (!event.ctrlKey && !event.metaKey && !svg.contains(document.activeElement)) return;
    event.preventDefault();
    map.zoom(Math.exp(-event.deltaY / 300), ...place(event));
  };
  svg.addEventListener("wheel", wheel, { passive: false });
}

function roundLength(metres) {
  const power = 10 ** Math.floor(Math.log10(metres));
  return power * [1, 2, 5].findLast((step) => step * power <= metres);
}

function formatMetres(metres) {
  if (metres < 0.995) return `${Math.round(100 * metres)} cm`;
  if (metres < 99.5) return `${Number(metres.toPrecision(2))} m`;
  if (metres < 9995) return `${Math.round(metres)} m`;
  return `${Number((metres / 1000).toPrecision(3))} km`;
}
