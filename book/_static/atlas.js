/* The explorer page: all heads of a model as a graph, from what talking_heads_utils.figures.atlas packed.
   The address holds the view: #L8H10.1&kind=Q&z=20&rank=5, or #all for the overview; of any model but the page's first
   behind its name: #smollm2:L19H2.7. Nothing here is specific to a model. */
(() => {
  const root = document.getElementById("atlas");
  if (!root) return;
  const START_Z = 12, MOST_EDGES = 150, FEW_EDGES = 60, ALL = "all", RANKS = [1, 2, 3, 5, 10, 20, 50, 100, 200, 500, Infinity];
  const DASHES = { Q: "", K: "7 3", V: "2 3" };
  const GRID_LABEL = "All heads, a row for each layer; arrow keys move, Enter chooses, Escape shows all";
  const SVG = "http://www.w3.org/2000/svg";
  const MODELS = JSON.parse(root.dataset.models || "{}"), FIRST = Object.keys(MODELS)[0] ?? "";
  const loaded = {}; // model -> a promise of its scores
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
    for (const role of Object.keys(packed.roles)) packed.colours.roles[role] ??= packed.colours.none;
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
  const edgesOf = ({ head, component, kind, rank: most, ...view }) => {
    const z = leastZ({ head, ...view });
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

  /* Where no z is chosen, an overview shows few edges and a head all that stand out. */
  const leastZ = ({ head, z }) => z ?? (head === null ? overviewZ() : Math.min(START_Z, overviewZ()));
  const WHOLE = { head: null, component: null, kind: ALL, rank: Infinity };
  const overviewZ = () => atlas.overviewZ ??= Math.ceil(
    edgesOf({ ...WHOLE, z: atlas.least_z }).edges[FEW_EDGES]?.z ?? atlas.least_z);
  const largestZ = () => atlas.largestZ ??= Math.ceil(
    edgesOf({ ...WHOLE, z: atlas.least_z, rank: 1 }).edges[0]?.z ?? atlas.least_z);

  /* ---- the address ---- */
  const parseLabel = (text) => {
    const match = /^\s*L(\d+)H(\d+)(?:\.(\d+))?\s*$/i.exec(text);
    if (!match) return { error: `“${text}” is no head: write layer and head as in L8H10, or a component as in L8H10.1.` };
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
    if (z !== null) parts.push(`z=${z}`);
    if (rank !== Infinity) parts.push(`rank=${rank}`);
    return `#${atlas.model === FIRST ? "" : `${atlas.model}:`}${parts.join("&") || ALL}`;
  };
  const split = (address) => {
    const [, model = FIRST, view] = /^#?(?:([^:&=]*):)?(.*)$/.exec(address);
    return { model, view };
  };
  const startView = () => ({ ...WHOLE, z: null, ...(atlas.start ? parseLabel(atlas.start) : {}) });
  const fromView = (view) => {
    if (!view) return startView();
    const found = { ...WHOLE, z: null };
    for (const part of view.split("&").filter(Boolean)) {
      const [key, value] = part.split("=");
      if (key === "kind" && atlas.kinds.includes(value)) found.kind = value;
      else if (key === "z" && Number(value) >= atlas.least_z) found.z = Math.min(Number(value), largestZ());
      else if (key === "rank" && Number(value) >= 1) found.rank = RANKS.findLast((rank) => rank <= Number(value));
      else if (/^L\d/i.test(part)) Object.assign(found, parseLabel(part));
      else if (part !== ALL) return null; // an anchor of the page, not a view
    }
    return found.error ? { ...startView(), error: found.error } : found;
  };
  const go = (change, replace = false) => {
    const next = { ...state, error: null, ...change };
    const address = toHash(next);
    if (address !== location.hash) history[replace ? "replaceState" : "pushState"](null, "", address);
    state = next;
    render();
  };
  const readAddress = async () => {
    const asked = location.hash, { model, view } = split(asked), known = model === FIRST || Object.hasOwn(MODELS, model);
    let error = known ? await show(model, asked) :
      `This page has no model “${model}”${FIRST ? `: it has ${Object.keys(MODELS).join(" and ")}` : ", but one alone"}.`;
    if (error && !atlas) error = [await show(FIRST, asked), error].filter(Boolean)[0];
    if (asked !== location.hash) return; // the reader went on
    if (!atlas) { parts.status.textContent = error; return; }
    const found = error ? { ...(state ?? startView()), error } : fromView(view);
    if (!found && state) return;
    state = found || startView();
    if (error || !view) history.replaceState(null, "", toHash(state));
    render();
  };
  const visit = (address) => { history.pushState(null, "", address); return readAddress(); };

  /* ---- controls ---- */
  const parts = {};
  const overview = () => go({ head: null, component: null, z: null });
  const buildControls = () => {
    const datalist = element("datalist", { id: "atlas-labels" });
    for (let head = 0; head < atlas.nLayers * atlas.nHeads; head++) datalist.append(new Option("", headName(head)));
    parts.search = element("input", { type: "search", id: "atlas-search", list: "atlas-labels", autocomplete: "off",
      placeholder: atlas.start ?? "L1H0.0", spellcheck: "false", "aria-describedby": "atlas-error" });
    parts.models = element("select", { id: "atlas-model", onchange: () => visit(`#${parts.models.value}:`) },
      ...Object.entries(MODELS).map(([key, text]) => new Option(text, key, false, key === atlas.model)));
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
    const find = (event) => {
      event.preventDefault();
      const text = parts.search.value.trim();
      if (text.includes(":")) visit(`#${text}`); else go(parseLabel(text));
    };
    const search = element("form", { role: "search", "aria-label": "Heads", onsubmit: find },
      element("label", { for: "atlas-search" }, "Head or component"), " ", parts.search, " ", element("button", {}, "Show"));
    const models = FIRST ? [element("label", {}, "Model ", parts.models)] : [];
    return element("div", { class: "figure-controls" }, ...models, search,
      element("label", {}, "Input ", parts.kind), element("label", {}, "Least z ", parts.z, " ", parts.zText),
      element("label", {}, "Rank ", parts.rank, " ", parts.rankText),
      element("button", { type: "button", onclick: overview }, "All heads"),
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
  const LEFT = 36, BOTTOM = 36, HEIGHT = 620;
  const geometry = () => {
    const width = parts.graph.clientWidth || 320; // where it is not laid out yet
    const step = (width - LEFT) / atlas.nHeads, row = Math.max(Math.min(step, 46, HEIGHT / atlas.nLayers), 25);
    const at = (head) => [LEFT + (head % atlas.nHeads + 0.5) * step, (atlas.nLayers - layerOf(head) - 0.5) * row];
    const radius = Math.min(0.3 * step, 0.3 * row, 11);
    return { step, row, at, radius, width, height: row * atlas.nLayers + BOTTOM };
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
      const last = head % atlas.nHeads === atlas.nHeads - 1, off = place.radius + 3; // no room to the right of the last
      const at = place.row > 40 ? { x, y: y + place.radius + 10 } :
        { x: x + (last ? -off : off), y: y + 4, class: last ? "before" : "beside" };
      group.append(svg("text", { ...at, "aria-hidden": "true" }, headName(head)));
    }
    return group;
  };
  const drawGraph = (edges) => {
    const place = geometry();
    const touched = new Set(edges.flatMap(({ writer, reader }) => [writer, reader]).concat(state.head ?? []));
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
  /* What was asked of an overview shows too little of one head. */
  const choose = (head) => go({ head, component: null, ...(state.head === null ? { z: null } : {}) });
  const onGraphClick = (event) => {
    const cell = event.target.closest("[data-head]");
    if (!cell) return;
    focused = Number(cell.dataset.head);
    if (focused === state.head && state.component === null) overview(); else choose(focused);
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
      choose(head);
    } else if (event.key === "Escape") {
      overview();
    } else return;
    event.preventDefault();
  };

  /* ---- the tables ---- */
  const onTableClick = (event) => {
    const link = event.target.closest("a");
    if (!link?.hash || link.classList.contains("elsewhere") || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    go(fromView(split(link.hash).view));
    parts.tables.querySelector("h2").focus({ preventScroll: true });
  };
  const link = (view) => element("a", { href: toHash({ ...state, ...view }) }, name(view));
  const table = (title, heads, rows, kind) => element("section", { class: kind }, element("h3", { class: "atlas-caption" }, title),
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
  const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(Math.abs(value) < 1 ? 3 : 2)}`;
  const effectsOf = (head) => (atlas.measured?.rows[head] ?? []).map(
    ([measure, component, of, effect, low, high, n, control]) => {
      const [says, unit, place, href] = atlas.measured.measures[measure];
      return { component, of, effect, low, high, n, control, says: says.replaceAll("{}", of), unit, place, href };
    });
  const elsewhere = ({ place, href }) => root.dataset.book === undefined ? place :
    element("a", { href: `${root.dataset.book}${href}`, class: "elsewhere" }, place);
  const effectTable = () => {
    const self = headName(state.head);
    const own = effectsOf(self).filter(({ component }) => (component ?? state.component) === state.component);
    own.sort((a, b) => (a.component === null) - (b.component === null)); // those of the chosen component first
    if (!own.length) return element("p", {}, `Of ${name(state)} the book has measured no effect.`);
    return table(`What ${name(state)} does, measured`, ["measured", "effect [95% interval]", "n", "in"],
      own.map((row) => [`${row.component === null ? self : name(state)} ${row.says}`,
        `${signed(row.effect)} [${signed(row.low)}, ${signed(row.high)}] ${row.unit}` +
        (row.control ? `; matched sets ${signed(row.control[0])} to ${signed(row.control[1])}` : ""),
        count(row.n), elsewhere(row)]), "atlas-measured");
  };
  const componentTable = (readers) => {
    const values = atlas.singular.subarray(state.head * atlas.dHead, (state.head + 1) * atlas.dHead);
    const total = values.reduce((sum, value) => sum + value ** 2, 0);
    const effects = effectsOf(headName(state.head)).filter(({ component }) => component !== null);
    const strongest = (i) => effects.filter(({ component }) => component === i)
      .sort((a, b) => Math.abs(b.effect) - Math.abs(a.effect))[0];
    const rows = Array.from(values, (value, i) => [link({ head: state.head, component: i }), value.toFixed(3),
      `${(100 * value ** 2 / total).toFixed(1)}%`, gap(values, i).toFixed(3), String(readers[i]),
      ...(effects.length ? [strongest(i) ? `${signed(strongest(i).effect)} on ${strongest(i).of}` : ""] : [])]);
    const made = table(`Components of ${headName(state.head)}`, ["component", "singular value", "share", "gap",
      "inputs that read it", ...(effects.length ? ["largest effect"] : [])], rows);
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
    parts.tables.replaceChildren(heading(name(state) + (role ? ` (${role})` : "")), ...(atlas.measured ? [effectTable()] : []),
      componentTable(readers),
      edgeTable(`${self} reads, each writer by its strongest component`, into),
      edgeTable(state.component === null ? whole : `${name(state)} writes`, out));
  };

  /* ---- all of it ---- */
  const summary = (edges, shown) => {
    const rank = state.rank === Infinity ? "" : `, rank ${state.rank} or better`;
    const where = `z of ${leastZ(state)} or more${rank}${state.kind === ALL ? "" : `, ${atlas.reads[state.kind]} alone`}`;
    const held = edges.length > shown.length ? `; the strongest ${count(shown.length)} are drawn` : "";
    if (state.head === null) return `${plural(edges.length, "edge")} between heads at ${where}${held}.`;
    const into = edges.filter(({ reader }) => reader === state.head).length;
    const reads = `${headName(state.head)} reads through ${plural(into, "edge")}`;
    const writes = `${name(state)} writes through ${plural(edges.length - into, "edge")} at ${where}${held}`;
    return state.component === null ? `${reads}; ${writes}.` : `${writes}, drawn here. ${reads}, listed below.`;
  };
  const render = () => {
    const { edges, readers } = edgesOf(state), shown = edges.slice(0, MOST_EDGES);
    focused = state.head ?? focused ?? 0;
    parts.models.value = atlas.model;
    parts.kind.value = state.kind;
    parts.z.value = leastZ(state);
    parts.zText.textContent = `z ≥ ${leastZ(state)}`;
    parts.z.setAttribute("aria-valuetext", `z of ${leastZ(state)} or more`);
    parts.rank.value = RANKS.indexOf(state.rank);
    parts.rankText.textContent = state.rank === Infinity ? "any" : `≤ ${state.rank}`;
    parts.rank.setAttribute("aria-valuetext", state.rank === Infinity ? "any rank" : `rank ${state.rank} or better`);
    parts.error.textContent = state.error || "";
    parts.search[state.error ? "setAttribute" : "removeAttribute"]("aria-invalid", "true");
    if (!state.error) parts.search.value = state.head === null ? "" : name(state);
    parts.status.textContent = summary(edges, shown);
    drawGraph(state.component === null ? shown : shown.filter(({ writer }) => writer === state.head));
    drawTables(shown, readers);
  };
  const nullNote = () => {
    const { about, null_rms: chance, least_z: least, largest_random_z: random } = atlas;
    return [
      `${atlas.shown} (${about.processing}).`,
      `C: composition score; chance is ${chance.toFixed(3)}, its root mean square for a random unit direction.`,
      `z: against ${about.n_random} random directions for each reader and input (seed ${about.seed}), of which the`,
      `largest reaches ${random.toFixed(1)}. rank: among all earlier components.`,
      `Of ${count(atlas.n_scores)} scores, the ${count(atlas.index.length)} with z of ${least} or more are here.`,
      ...atlas.notes,
      atlas.role_source ? `Roles: ${atlas.role_source}.` : "",
    ].join(" ");
  };

  /* ---- models ---- */
  /* A script, since a page opened from file:// may not fetch; what it holds is taken before another can run. */
  const script = (model) => new Promise((resolve, reject) => document.head.append(element("script", {
    src: root.dataset.source.replace(FIRST, model),
    onload: () => { resolve(window.bookAtlas); delete window.bookAtlas; },
    onerror: () => reject(new Error("The scores could not be loaded: is the site whole?")) })));
  const fetched = async (model) => {
    const packed = window.bookAtlas ?? await script(model);
    if (packed.missing) throw new Error(packed.missing);
    try {
      return { ...unpack(packed, await inflate(packed.payload)), model };
    } catch (error) {
      throw new Error(`The scores could not be read (${error.message}): is the browser up to date, the site whole?`);
    }
  };
  /* Nothing once a model's scores are there, unless the reader went on; else a sentence, and what was shown stays. */
  const show = async (model, asked) => {
    if (atlas?.model === model) return null;
    parts.status.textContent = "Loading the scores …";
    try {
      const found = await (loaded[model] ??= fetched(model));
      if (asked === location.hash && atlas !== found) buildModel(found);
      return null;
    } catch (error) {
      delete loaded[model];
      return error.message;
    }
  };
  const buildModel = (found) => {
    const chosen = parts.models && document.activeElement === parts.models;
    atlas = found;
    state = focused = undefined;
    const note = element("p", { class: "atlas-note" }, nullNote());
    root.replaceChildren(buildControls(), parts.status, parts.graph, buildLegend(), parts.tables, note);
    if (chosen) parts.models.focus();
  };
  const start = async () => {
    parts.status = root.querySelector("[role=status]");
    parts.graph = element("div", { onclick: onGraphClick, onkeydown: onGraphKey });
    parts.tables = element("div", { class: "atlas-tables", onclick: onTableClick });
    await readAddress();
    addEventListener("popstate", readAddress);
    let width = parts.graph.clientWidth;
    new ResizeObserver(() => { if (width !== (width = parts.graph.clientWidth) && state) render(); }).observe(parts.graph);
    root.dataset.ready = "true";
  };
  /* Once the page stands. */
  if (document.readyState === "complete") start(); else addEventListener("load", start);
})();
