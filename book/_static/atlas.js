/* The explorer page: all heads of a model as a graph, from what talking_heads_utils.figures.atlas packed.
   The address holds the view: #L8H10.1&kind=Q&z=20&rank=5. Nothing here is specific to GPT-2 small. */
(() => {
  const root = document.getElementById("atlas");
  if (!root) return;
  const START_Z = 12, MOST_EDGES = 150, ALL = "all", RANKS = [1, 2, 3, 5, 10, 20, 50, 100, 200, 500, Infinity];
  const DASHES = { Q: "", K: "7 3", V: "2 3" };
  const GRID_LABEL = "All heads, a row for each layer; arrow keys move, Enter chooses, Escape shows all";
  const SVG = "http://www.w3.org/2000/svg";
  let atlas, state, focused;

  /* ---- small helpers ---- */
  const element = (name, attributes = {}, ...children) => {
    const made = attributes.svg ? document.createElementNS(SVG, name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "svg" || value === null || value === undefined) continue;
      if (key.startsWith("on")) made.addEventListener(key.slice(2), value); else made.setAttribute(key, value);
    }
    made.append(...children);
    return made;
  };
  const svg = (name, attributes, ...children) => element(name, { svg: true, ...attributes }, ...children);
  const count = (n) => n.toLocaleString("en");
  const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;
  const headName = (head) => `L${Math.floor(head / atlas.nHeads)}H${head % atlas.nHeads}`;
  const name = ({ head, component }) => headName(head) + (component === null ? "" : `.${component}`);
  const layerOf = (head) => Math.floor(head / atlas.nHeads);

  /* ---- data ---- */
  const inflate = async (base64) => {
    const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).arrayBuffer();
  };
  const float16 = (bits) => {
    const exponent = bits >> 10, fraction = (bits & 1023) / 1024;
    return exponent ? 2 ** (exponent - 15) * (1 + fraction) : 2 ** -14 * fraction;
  };
  const unpack = (packed, buffer) => {
    const { n_layers: nLayers, n_heads: nHeads, d_head: dHead } = packed.about;
    const nReaders = packed.kinds.length * (nLayers - 1) * nHeads;
    let at = 0;
    const take = (Type, n) => new Type(buffer.slice(at, at += n * Type.BYTES_PER_ELEMENT));
    const planes = (n) => {
      const bytes = take(Uint8Array, 4 * n);
      return Uint32Array.from({ length: n }, (_, i) =>
        bytes[i] + 256 * (bytes[n + i] + 256 * (bytes[2 * n + i] + 256 * bytes[3 * n + i])));
    };
    const nulls = take(Float32Array, 2 * nReaders), counts = take(Uint32Array, nReaders);
    const singular = Float64Array.from(take(Uint16Array, nLayers * nHeads * dHead), float16);
    const starts = [0];
    counts.forEach((n) => starts.push(starts.at(-1) + n));
    const index = planes(starts.at(-1)), steps = planes(starts.at(-1));
    const scores = new Float64Array(index.length);
    for (let reader = 0; reader < nReaders; reader++) {
      for (let i = starts[reader], bits = 65536; i < starts[reader + 1]; i++) scores[i] = float16(bits -= steps[i]);
    }
    const roleOf = {};
    for (const [role, heads] of Object.entries(packed.roles)) for (const head of heads) roleOf[head] ??= role;
    return { ...packed, nLayers, nHeads, dHead, nulls, singular, starts, index, scores, roleOf };
  };

  /* Every kept score of at least z and at most some rank into one reader, the strongest first:
     visit(component index, C, z, rank). */
  const reads = (kind, reader, z, rank, visit) => {
    const { nHeads, nLayers, nulls, starts, scores, index } = atlas;
    const block = atlas.kinds.indexOf(kind) * (nLayers - 1) + layerOf(reader) - 1;
    const mean = nulls[2 * block * nHeads + reader % nHeads], spread = nulls[(2 * block + 1) * nHeads + reader % nHeads];
    const from = starts[block * nHeads + reader % nHeads];
    const to = Math.min(starts[block * nHeads + reader % nHeads + 1], from + rank);
    for (let i = from; i < to; i++) {
      const value = (scores[i] - mean) / spread;
      if (value < z) return;
      visit(index[i], scores[i], value, i - from + 1);
    }
  };

  /* The edges of a view, the strongest z first, and how many inputs read each component of the chosen head. An edge
     is a pair's strongest component, unless one component is chosen: then that component is what leaves its head. */
  const edgesOf = ({ head, component, kind, z, rank: most }) => {
    const edges = [], readers = new Array(atlas.dHead).fill(0);
    for (const each of kind === ALL ? atlas.kinds : [kind]) {
      for (let reader = atlas.nHeads; reader < atlas.nLayers * atlas.nHeads; reader++) {
        const seen = new Set(), incoming = reader === head || head === null;
        if (!incoming && head >= reader) continue;
        reads(each, reader, z, most, (index, score, value, rank) => {
          const writer = Math.floor(index / atlas.dHead), which = index % atlas.dHead;
          if (!incoming) {
            if (writer !== head) return;
            readers[which]++;
            if (component !== null && which !== component) return;
          }
          if (seen.has(writer)) return;
          seen.add(writer);
          edges.push({ writer, component: which, reader, kind: each, score, z: value, rank });
        });
      }
    }
    return { edges: edges.sort((a, b) => b.z - a.z), readers };
  };

  /* ---- the address ---- */
  const parseLabel = (text) => {
    const match = /^\s*L(\d+)H(\d+)(?:\.(\d+))?\s*$/i.exec(text);
    if (!match) return { error: `“${text}” is no head. Write layer and head as in L8H10, or a component as in L8H10.1.` };
    const [layer, head, component] = match.slice(1).map((part) => part === undefined ? null : Number(part));
    if (layer >= atlas.nLayers || head >= atlas.nHeads || component >= atlas.dHead) {
      return { error: `${atlas.about.model} has no ${text.trim()}: its layers are 0 to ${atlas.nLayers - 1}, heads 0 to ` +
        `${atlas.nHeads - 1}, components 0 to ${atlas.dHead - 1}.` };
    }
    return { head: layer * atlas.nHeads + head, component };
  };
  const toHash = ({ head, component, kind, z, rank }) => {
    const parts = head === null ? [] : [name({ head, component })];
    if (kind !== ALL) parts.push(`kind=${kind}`);
    if (z !== START_Z) parts.push(`z=${z}`);
    if (rank !== Infinity) parts.push(`rank=${rank}`);
    return `#${parts.join("&")}`;
  };
  const fromHash = (hash) => {
    const found = { head: null, component: null, kind: ALL, z: START_Z, rank: Infinity };
    for (const part of hash.slice(1).split("&").filter(Boolean)) {
      const [key, value] = part.split("=");
      if (key === "kind" && atlas.kinds.includes(value)) found.kind = value;
      else if (key === "z" && Number(value) >= atlas.least_z) found.z = Math.min(Number(value), largestZ());
      else if (key === "rank" && Number(value) >= 1) found.rank = RANKS.findLast((rank) => rank <= Number(value));
      else if (/^L\d/i.test(part)) Object.assign(found, parseLabel(part));
      else return null; // an anchor of the page, not a view
    }
    return found;
  };
  const go = (change, replace = false) => {
    const next = { ...state, error: null, ...change };
    const address = toHash(next);
    if (address !== (location.hash || "#")) history[replace ? "replaceState" : "pushState"](null, "", address);
    state = next;
    render();
  };
  const readAddress = () => {
    const found = fromHash(location.hash);
    if (found || !state) { state = found || fromHash("#"); render(); }
  };
  const largestZ = () => atlas.largestZ ??= Math.ceil(
    edgesOf({ head: null, component: null, kind: ALL, z: atlas.least_z, rank: 1 }).edges[0]?.z ?? atlas.least_z);

  /* ---- controls ---- */
  const parts = {};
  const buildControls = () => {
    const datalist = element("datalist", { id: "atlas-labels" });
    for (let head = 0; head < atlas.nLayers * atlas.nHeads; head++) datalist.append(new Option("", headName(head)));
    parts.search = element("input", { type: "search", id: "atlas-search", list: "atlas-labels", autocomplete: "off",
      placeholder: "L8H10.1", spellcheck: "false", "aria-describedby": "atlas-error" });
    parts.kind = element("select", { onchange: () => go({ kind: parts.kind.value }) }, new Option("all inputs", ALL));
    for (const kind of atlas.kinds) parts.kind.add(new Option(`${kind} (${atlas.reads[kind]})`, kind));
    const slider = (range, read) => element("input", { type: "range", step: 1, ...range,
      oninput: (event) => { Object.assign(state, read(event.target.value)); render(); },
      onchange: (event) => go(read(event.target.value), true) });
    parts.z = slider({ min: atlas.least_z, max: largestZ() }, (value) => ({ z: Number(value) }));
    parts.rank = slider({ min: 0, max: RANKS.length - 1 }, (value) => ({ rank: RANKS[value] }));
    parts.zText = element("output");
    parts.rankText = element("output");
    parts.error = element("p", { id: "atlas-error", role: "alert", class: "atlas-error" });
    const find = (event) => { event.preventDefault(); go(parseLabel(parts.search.value)); };
    const search = element("form", { role: "search", "aria-label": "Heads", onsubmit: find },
      element("label", { for: "atlas-search" }, "Head or component"), " ", parts.search, " ", element("button", {}, "Show"));
    return element("div", { class: "figure-controls" }, search,
      element("label", {}, "Input ", parts.kind), element("label", {}, "Least z ", parts.z, " ", parts.zText),
      element("label", {}, "Rank ", parts.rank, " ", parts.rankText),
      element("button", { type: "button", onclick: () => go({ head: null, component: null }) }, "All heads"),
      datalist, parts.error);
  };

  const buildLegend = () => {
    const line = (kind) => svg("svg", { width: 34, height: 12, "aria-hidden": "true" }, svg("line", {
      x1: 1, x2: 33, y1: 6, y2: 6, stroke: atlas.colours.kinds[kind], "stroke-width": 3, "stroke-dasharray": DASHES[kind] }));
    const dot = (role) => svg("svg", { width: 14, height: 14, "aria-hidden": "true" },
      svg("circle", { cx: 7, cy: 7, r: 6, fill: atlas.colours.roles[role] }));
    return element("ul", { class: "atlas-legend", "aria-label": "Legend" },
      ...atlas.kinds.map((kind) => element("li", {}, line(kind), ` read into the ${atlas.reads[kind]} (${kind})`)),
      ...Object.keys(atlas.roles).map((role) => element("li", {}, dot(role), ` ${role}`)));
  };

  /* ---- the graph ---- */
  const LEFT = 30, BOTTOM = 36;
  const geometry = () => {
    const step = (parts.graph.clientWidth - LEFT) / atlas.nHeads, row = Math.max(Math.min(step, 46), 25);
    const at = (head) => [LEFT + (head % atlas.nHeads + 0.5) * step, (atlas.nLayers - layerOf(head) - 0.5) * row];
    const radius = Math.min(0.3 * step, 0.3 * row, 11);
    return { step, row, at, radius, width: parts.graph.clientWidth, height: row * atlas.nLayers + BOTTOM };
  };
  const edgePath = ({ writer, reader, kind }, { at, step, radius }) => {
    const [x1, y1] = at(writer), [x2, y2] = at(reader), half = (y1 - y2) / 2;
    const bow = step * (0.3 * (atlas.kinds.indexOf(kind) - 1) + (x1 === x2 ? 0.45 : 0));
    return `M${x1} ${y1 - radius}C${x1 + bow} ${y1 - half} ${x2 + bow} ${y2 + half} ${x2} ${y2 + radius}`;
  };
  const edgeLabel = (edge) => `${name({ head: edge.writer, component: edge.component })} → ${headName(edge.reader)}, ` +
    `${atlas.reads[edge.kind]}: C = ${edge.score.toFixed(3)}, z = ${edge.z.toFixed(1)}, rank ${count(edge.rank)}`;
  const drawEdges = (edges, place) => edges.map((edge) => svg("path", {
    d: edgePath(edge, place), fill: "none", stroke: atlas.colours.kinds[edge.kind], "stroke-dasharray": DASHES[edge.kind],
    "stroke-width": (1 + 2.5 * edge.z / largestZ()).toFixed(2), class: "atlas-edge",
  }, svg("title", {}, edgeLabel(edge)))).reverse(); // the strongest on top
  const drawHead = (head, place, touched) => {
    const [x, y] = place.at(head), role = atlas.roleOf[headName(head)], chosen = head === state.head;
    const label = headName(head) + (role ? `, ${role}` : ""), apart = state.head !== null && !touched.has(head);
    const group = svg("g", { role: "gridcell", tabindex: head === focused ? 0 : -1, "aria-selected": chosen, "aria-label": label,
      "data-head": head, class: `atlas-head${chosen ? " chosen" : ""}${apart ? " apart" : ""}` },
    svg("title", {}, label),
    svg("rect", { x: x - place.step / 2, y: y - place.row / 2, width: place.step, height: place.row, rx: 4 }),
    svg("circle", { cx: x, cy: y, r: place.radius, style: role ? `fill: ${atlas.colours.roles[role]}` : null }));
    if (place.step > 40 && state.head !== null && !apart) {
      group.append(svg("text", { x, y: y + place.radius + 10, "aria-hidden": "true" }, headName(head)));
    }
    return group;
  };
  const drawGraph = (edges) => {
    const place = geometry(), touched = new Set(edges.flatMap(({ writer, reader }) => [writer, reader]).concat(state.head ?? []));
    const rows = [], had = parts.svg?.contains(document.activeElement);
    for (let layer = atlas.nLayers - 1; layer >= 0; layer--) {
      const heads = Array.from({ length: atlas.nHeads }, (_, head) => drawHead(layer * atlas.nHeads + head, place, touched));
      rows.push(svg("g", { role: "row", "aria-label": `layer ${layer}` }, ...heads));
    }
    const text = (x, y, content, more) => svg("text", { x, y, ...more }, content);
    const range = (n, make) => Array.from({ length: n }, (_, i) => make(i)), middle = place.row * atlas.nLayers / 2;
    const ticks = [
      ...range(atlas.nLayers, (layer) => text(LEFT - 14, place.at(layer * atlas.nHeads)[1] + 4, layer)),
      ...range(atlas.nHeads, (head) => text(place.at(head)[0], place.height - BOTTOM + 14, head)),
      text(LEFT + place.step * atlas.nHeads / 2, place.height - 4, "head"),
      text(0, 0, "layer", { transform: `translate(9 ${middle}) rotate(-90)` }),
    ];
    const drawn = svg("svg", { width: place.width, height: place.height, class: "atlas-graph" },
      svg("g", { class: "atlas-axis", "aria-hidden": "true" }, ...ticks),
      svg("g", { "aria-hidden": "true" }, ...drawEdges(edges, place)),
      svg("g", { role: "grid", "aria-label": GRID_LABEL }, ...rows));
    parts.graph.replaceChildren(parts.svg = drawn);
    if (had) focusHead(focused);
  };
  const focusHead = (head) => {
    parts.svg.querySelector('[tabindex="0"]')?.setAttribute("tabindex", -1);
    const cell = parts.svg.querySelector(`[data-head="${focused = head}"]`);
    cell.setAttribute("tabindex", 0);
    cell.focus({ preventScroll: true });
  };
  const onGraphClick = (event) => {
    const cell = event.target.closest("[data-head]");
    if (!cell) return;
    focused = Number(cell.dataset.head);
    go({ head: focused === state.head ? null : focused, component: null });
  };
  const onGraphKey = (event) => {
    const cell = event.target.closest("[data-head]"), n = atlas.nHeads;
    if (!cell) return;
    const head = Number(cell.dataset.head), column = head % n;
    const moves = { ArrowUp: head + n, ArrowDown: head - n, ArrowLeft: column ? head - 1 : head,
      ArrowRight: column < n - 1 ? head + 1 : head, Home: head - column, End: head - column + n - 1 };
    if (event.key in moves) {
      if (moves[event.key] >= 0 && moves[event.key] < n * atlas.nLayers) focusHead(moves[event.key]);
    } else if (event.key === "Enter" || event.key === " ") {
      go({ head, component: null });
    } else if (event.key === "Escape") {
      go({ head: null, component: null });
    } else return;
    event.preventDefault();
  };

  /* ---- the tables ---- */
  const onTableClick = (event) => {
    const link = event.target.closest("a");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    go(fromHash(link.hash));
    parts.tables.querySelector("h2").focus({ preventScroll: true });
  };
  const link = (view) => element("a", { href: toHash({ ...state, ...view }) }, name(view));
  const table = (title, heads, rows) => element("section", {}, element("h3", { class: "atlas-caption" }, title),
    !rows.length ? element("p", {}, "None at this threshold.") :
    element("div", { class: "atlas-scroll", tabindex: 0, role: "region", "aria-label": title },
      element("table", { "aria-label": title },
        element("thead", {}, element("tr", {}, ...heads.map((text) => element("th", { scope: "col" }, text)))),
        element("tbody", {}, ...rows.map((cells) => element("tr", {}, ...cells.map((cell) => element("td", {}, cell))))))));
  const edgeTable = (title, edges) => table(title, ["writer", "reader", "input", "C", "C / chance", "z", "rank"],
    edges.map((edge) => [
      link({ head: edge.writer, component: edge.component }), link({ head: edge.reader, component: null }),
      `${edge.kind} (${atlas.reads[edge.kind]})`, edge.score.toFixed(3), `${(edge.score / atlas.null_rms).toFixed(1)}×`,
      edge.z.toFixed(1),
      `${count(edge.rank)} of ${count(layerOf(edge.reader) * atlas.nHeads * atlas.dHead)}`]));
  const gap = (values, i) => {
    const steps = [values[i - 1] - values[i], values[i] - values[i + 1]]; // NaN past either end
    return Math.min(...steps.filter((step) => !Number.isNaN(step))) / values[i];
  };
  const componentTable = (readers) => {
    const values = atlas.singular.subarray(state.head * atlas.dHead, (state.head + 1) * atlas.dHead);
    const total = values.reduce((sum, value) => sum + value ** 2, 0);
    const rows = Array.from(values, (value, i) => [link({ head: state.head, component: i }), value.toFixed(3),
      `${(100 * value ** 2 / total).toFixed(1)}%`, gap(values, i).toFixed(3), String(readers[i])]);
    const made = table(`Components of ${headName(state.head)}`,
      ["component", "singular value", "share", "gap", "inputs that read it"], rows);
    made.querySelectorAll("tbody tr")[state.component]?.setAttribute("aria-current", "true");
    return made;
  };
  const drawTables = (edges, readers) => {
    const heading = (text) => element("h2", { tabindex: -1, class: "atlas-title" }, text);
    if (state.head === null) {
      parts.tables.replaceChildren(heading("All heads"), edgeTable("Edges shown, the strongest first", edges));
      return;
    }
    const self = headName(state.head), role = atlas.roleOf[self];
    const into = edges.filter(({ reader }) => reader === state.head), out = edges.filter(({ writer }) => writer === state.head);
    const whole = `${self} writes, by its strongest component for each reader`;
    parts.tables.replaceChildren(heading(name(state) + (role ? ` (${role})` : "")), componentTable(readers),
      edgeTable(`${self} reads, each writer by its strongest component`, into),
      edgeTable(state.component === null ? whole : `${name(state)} writes`, out));
  };

  /* ---- all of it ---- */
  const summary = (edges, shown) => {
    const rank = state.rank === Infinity ? "" : `, rank ${state.rank} or better`;
    const where = `z of ${state.z} or more${rank}${state.kind === ALL ? "" : `, ${atlas.reads[state.kind]} alone`}`;
    const held = edges.length > shown.length ? `; the strongest ${count(shown.length)} are drawn` : "";
    if (state.head === null) return `${plural(edges.length, "edge")} between heads at ${where}${held}.`;
    const into = edges.filter(({ reader }) => reader === state.head).length;
    return `${headName(state.head)} reads through ${plural(into, "edge")}; ${name(state)} writes through ` +
      `${plural(edges.length - into, "edge")} at ${where}${held}.`;
  };
  const render = () => {
    const { edges, readers } = edgesOf(state), shown = edges.slice(0, MOST_EDGES);
    focused = state.head ?? focused ?? 0;
    parts.kind.value = state.kind;
    parts.z.value = state.z;
    parts.zText.textContent = `z ≥ ${state.z}`;
    parts.z.setAttribute("aria-valuetext", `z of ${state.z} or more`);
    parts.rank.value = RANKS.indexOf(state.rank);
    parts.rankText.textContent = state.rank === Infinity ? "any" : `≤ ${state.rank}`;
    parts.rank.setAttribute("aria-valuetext", state.rank === Infinity ? "any rank" : `rank ${state.rank} or better`);
    parts.error.textContent = state.error || "";
    parts.search[state.error ? "setAttribute" : "removeAttribute"]("aria-invalid", "true");
    if (!state.error) parts.search.value = state.head === null ? "" : name(state);
    parts.status.textContent = summary(edges, shown);
    drawGraph(shown);
    drawTables(shown, readers);
  };
  const nullNote = () => {
    const { about, null_rms: chance, least_z: least, largest_random_z: random } = atlas;
    return [
      `${about.model}, real weights (${about.processing}).`,
      `C: composition score; chance is ${chance.toFixed(3)}, its root mean square for a random unit direction.`,
      `z: against ${about.n_random} random directions for each reader and input (seed ${about.seed}), of which the`,
      `largest reaches ${random.toFixed(1)}. rank: among all earlier components.`,
      `Of ${count(atlas.n_scores)} scores, the ${count(atlas.index.length)} with z of ${least} or more are here.`,
      atlas.role_source ? `Roles: ${atlas.role_source}.` : "",
    ].join(" ");
  };
  const start = async () => {
    const status = root.querySelector("[role=status]");
    try {
      atlas = unpack(window.bookAtlas, await inflate(window.bookAtlas.payload));
      delete window.bookAtlas;
    } catch (error) {
      status.textContent = `The scores could not be read (${error.message}): is the browser up to date, the site whole?`;
      return;
    }
    parts.status = status;
    parts.graph = element("div", { onclick: onGraphClick, onkeydown: onGraphKey });
    parts.tables = element("div", { class: "atlas-tables", onclick: onTableClick });
    const note = element("p", { class: "atlas-note" }, nullNote());
    root.replaceChildren(buildControls(), buildLegend(), parts.graph, status, note, parts.tables);
    readAddress();
    addEventListener("popstate", readAddress);
    let width = parts.graph.clientWidth;
    new ResizeObserver(() => { if (width !== (width = parts.graph.clientWidth)) render(); }).observe(parts.graph);
    root.dataset.ready = "true";
  };
  /* Fetched once the page stands; a script, since a page opened from file:// may not fetch. */
  const missing = () => {
    root.querySelector("[role=status]").textContent = "The scores could not be loaded: is the site whole?";
  };
  const load = () => window.bookAtlas ? start() : document.head.append(
    element("script", { src: root.dataset.source, onload: start, onerror: missing }));
  if (document.readyState === "complete") load(); else addEventListener("load", load);
})();
