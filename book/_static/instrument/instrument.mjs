/* The instrument: a prompt, what the model says to it, and a hand inside the model. One worker serves every instrument
   of a page; nothing is fetched before a reader asks for the model. An instrument is a <div class="instrument"> whose
   data-preset says what it begins with: see talking_heads_utils/site/instrument.py. */

import { megabytes as MEGABYTES, missing as MISSING } from "../model/about.mjs"; // written beside the model

const FOLDER = new URL("../model/", import.meta.url).href;

/* --- the worker --- */

let worker, opened;
const instruments = [];
const asked = new Map();
let count = 0, onProgress = () => {};
/* What the worker held is free again; every instrument offers its button once more, and says why. */
const stop = (why) => {
  worker?.terminate();
  worker = opened = undefined;
  for (const { reject } of asked.values()) reject(new Error(why));
  asked.clear();
  for (const one of instruments) if (one.shape) { one.offer(); one.say(why, true); }
};
const ask = (what, given = {}) => new Promise((resolve, reject) => {
  if (!worker) {
    worker = new Worker(new URL("worker.mjs", import.meta.url), { type: "module" });
    worker.onerror = (event) => stop(`The model stopped (${event.message || "its program did not load"}). Load it again.`);
    worker.onmessage = ({ data }) => {
      if (data.progress !== undefined) return onProgress(data.progress);
      const { resolve, reject } = asked.get(data.id);
      asked.delete(data.id);
      if (data.error) reject(new Error(data.error)); else resolve(data.value);
    };
  }
  asked.set(++count, { resolve, reject });
  worker.postMessage({ id: count, what, ...given });
});
const open = (engine) => (opened ??= ask("open", { folder: FOLDER, engine }).catch((error) => { stop(error.message); throw error; }));

/* --- small things --- */

const el = (tag, given = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") node.style.cssText = value;
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== undefined && value !== null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
};
const number = (value, digits = 2) => (value < 0 ? "−" : "") + Math.abs(value).toFixed(digits);
const signed = (value, digits = 2) => (value >= 0 ? "+" : "") + number(value, digits);
const share = (p) => (p >= 0.0995 ? `${Math.round(100 * p)}%` : `${(100 * p).toFixed(1)}%`);
const shown = (text) => text.replace(/\n/g, "⏎").replace(/^ (?=.)/, "").replace(/^\s+$/, "␣") || "◌";
const label = ({ layer, head, component }) => `L${layer}H${head}${component === undefined ? "" : `.${component}`}`;
const parse = (text) => {
  const found = /^L(\d+)H(\d+)$/i.exec(text.trim());
  return found ? { layer: Number(found[1]), head: Number(found[2]) } : null;
};
const coded = (state) => btoa(String.fromCharCode(...new TextEncoder().encode(JSON.stringify(state)))).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
const decoded = (text) => JSON.parse(new TextDecoder().decode(Uint8Array.from(atob(text.replace(/-/g, "+").replace(/_/g, "/")), (c) => c.charCodeAt(0))));
const quoted = (text) => JSON.stringify(text).replace(/[\u007f-\uffff]/g, (c) => c);

/* A bar with what it was before under it. */
const bar = (name, before, after, top, text) => el("li", {},
  el("span", { class: "name" }, name),
  el("span", { class: "bar", "aria-hidden": "true" },
    el("i", { class: "before", style: `width:${100 * before / top}%` }), el("i", { style: `width:${100 * after / top}%` })),
  el("span", { class: "value" }, text));

/* --- one instrument --- */

class Instrument {
  constructor(div) {
    this.div = div;
    const preset = JSON.parse(div.dataset.preset);
    this.id = div.id;
    this.preset = preset;
    this.state = { text: preset.text, answer: preset.answer, other: preset.other, names: {}, open: preset.open, reader: preset.reader, moves: [] };
    const link = new URLSearchParams(location.hash.slice(1)).get(this.id);
    try { if (link) { Object.assign(this.state, decoded(link)); this.linked = true; } } catch { /* not one of ours */ }
    this.offer();
  }

  /* Before the model is there: what it costs, and a button. */
  offer() {
    this.shape = undefined;
    const why = MISSING || (!(window.Worker && window.WebAssembly) && "This browser lacks what the model needs (WebAssembly and workers). The figures of this page need neither.");
    const phone = matchMedia("(max-width: 48rem)").matches;
    this.status = el("p", { role: "status" });
    this.progress = el("progress", { max: 1, value: 0, hidden: true, "aria-label": "how much of the model has arrived" });
    this.button = el("button", { class: "load", onclick: () => this.load() }, `Load the model (${MEGABYTES.wasm} MB)`);
    this.card = el("input", { type: "checkbox" });
    const choice = navigator.gpu && WebAssembly.Suspending && el("label", { class: "note" }, this.card,
      " on this machine’s graphics card (WebGPU; so far tried on an emulated one alone)");
    const cost = phone ? `On a phone this takes ${MEGABYTES.wasm} MB of your data plan and some 600 MB of memory; it may be slow, or refused.`
      : "It takes some 600 MB of memory, and stays in the browser's cache.";
    this.div.replaceChildren(...(why ? [el("p", {}, why)] : [
      el("p", {}, this.preset.invites, " ", cost, " What you type stays on your machine."), this.button, " ", ...(choice ? [choice, " "] : []), this.progress, this.status]));
    if (this.linked && !why) this.status.textContent = `This link holds a state of the instrument: “${this.state.text.slice(-60)}”${this.state.moves.length ? `, with ${this.state.moves.length} changes` : ""}. Load the model to see it.`;
    if (this.linked) this.div.scrollIntoView();
  }

  async load() {
    this.button.disabled = true;
    this.progress.hidden = false;
    this.say("");
    const engine = this.card.checked ? "webgpu" : "wasm";
    onProgress = (value) => { this.progress.value = value; this.say(`${Math.round(value * 100)}% of ${MEGABYTES[engine]} MB`); };
    try {
      ({ shape: this.shape, longest: this.longest } = await open(engine));
      this.build();
      await this.run();
    } catch (error) {
      this.button.disabled = false;
      this.progress.hidden = true;
      this.say(error.message);
    }
  }

  say(text, wrong = false) { this.status.textContent = text; this.status.classList.toggle("wrong", wrong); }

  field(name, text, given = {}) {
    const input = el(given.rows ? "textarea" : "input", { name, ...given });
    input.value = this.state[name] ?? "";
    input.addEventListener("keydown", (event) => { if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); this.run(); } });
    this.fields[name] = input;
    return el("label", {}, text, " ", input);
  }

  build() {
    this.fields = {};
    const form = el("form", { class: "asks", onsubmit: (event) => { event.preventDefault(); this.run(); } },
      this.builder(), this.field("text", "Prompt", { rows: this.preset.builder?.kind === "examples" ? 5 : 2, spellcheck: "false" }),
      el("div", { class: "figure-controls" }, this.field("answer", "answer", { size: 10 }), this.field("other", "instead of", { size: 10 }),
        el("button", { type: "submit" }, "Run")));
    this.status = el("p", { role: "status" });
    this.naming = el("input", { size: 6, value: this.preset.names?.[0]?.label ?? "end", list: `${this.id}-names`, "aria-label": "name for a token that is clicked" });
    const names = el("datalist", { id: `${this.id}-names` }, ...["IO", "S1", "S2", "end", "item 0", "item 1"].map((name) => el("option", { value: name })));
    for (const name of ["tokens", "top", "grid", "scale", "head", "changes"]) this[name] = el("div", { class: name });
    this.tokens.setAttribute("aria-label", "tokens of the prompt");
    this.grid.setAttribute("role", "grid");
    this.grid.setAttribute("aria-label", "heads, layers from left to right");
    this.grid.style.setProperty("--layers", this.shape.n_layers);
    this.grid.addEventListener("keydown", (event) => this.walk(event));
    this.finder = el("input", { size: 7, placeholder: "L9H3", "aria-label": "head to open", onchange: () => this.openHead(parse(this.finder.value)) });
    this.div.replaceChildren(form, this.tokens, el("p", { class: "naming" }, "A click names a token: ", this.naming, names), this.status,
      el("div", { class: "two" }, el("section", {}, el("h4", {}, "What comes next"), this.top),
        el("section", {}, el("h4", {}, "Heads: direct effect on the answer"), this.grid, this.scale)),
      el("label", { class: "finder" }, "A click opens a head, or by name: ", this.finder),
      this.head, this.changes);
    this.wanted = null;
  }

  /* --- prompts out of parts: a list, or examples --- */

  builder() {
    const make = this.preset.builder;
    if (!make) return null;
    const bar = el("div", { class: "figure-controls" });
    const use = (made) => { for (const name of ["text", "answer", "other"]) this.fields[name].value = made[name]; this.state.names = {}; this.spots = made.spots; this.run(); };
    if (make.kind === "list") {
      const items = el("input", { size: 34, value: make.items.join(", ") }), left = el("select");
      const listed = () => items.value.split(",").map((item) => item.trim()).filter(Boolean);
      const refill = () => { const old = left.value; left.replaceChildren(...listed().map((item) => el("option", {}, item))); if (listed().includes(old)) left.value = old; };
      const go = () => {
        const all = listed(), rest = all.filter((item) => item !== left.value);
        if (all.length < 2 || new Set(all).size < all.length) return this.say("A list needs two items at least, each named once.", true);
        const text = make.template.replace("{all}", all.join(", ")).replace("{rest}", rest.join(", "));
        use({ text, answer: left.value, other: rest[0], spots: all.map((word, i) => ({ word, nth: 0, label: `item ${i}` })) });
      };
      refill();
      left.value = make.left;
      items.addEventListener("change", refill);
      bar.append(el("label", {}, "items ", items), el("label", {}, "missing ", left), el("button", { type: "button", onclick: go }, "Write the list"));
    } else {
      const task = el("select", {}, ...Object.keys(make.tasks).map((name) => el("option", {}, name)));
      const n = el("input", { type: "range", min: 0, max: 10, value: make.n }), out = el("output", {}, String(make.n));
      const go = () => {
        const pairs = make.tasks[task.value], [question, answer] = pairs[0], some = pairs.slice(1, 1 + Number(n.value));
        out.textContent = n.value;
        const lines = [...some.map(([x, y]) => make.line.replace("{x}", x).replace("{y}", y)), make.line.replace("{x}", question).replace(/\s*\{y\}/, "")];
        use({ text: lines.join("\n"), answer, other: pairs[1][1], spots: [] });
      };
      task.addEventListener("change", go);
      n.addEventListener("change", go);
      n.addEventListener("input", () => { out.textContent = n.value; });
      bar.append(el("label", {}, "task ", task), el("label", {}, "examples ", n, " ", out));
    }
    return bar;
  }

  /* --- running --- */

  async run() {
    const { fields, state } = this;
    try {
      const text = fields.text.value;
      this.say("running …");
      const tokens = await ask("tokens", { text });
      const words = ["answer", "other"].map((name) => fields[name].value.trim()), pair = [];
      for (const word of words) if (word) pair.push(await ask("token", { word: text.endsWith(" ") || text.endsWith("\n") ? word : ` ${word}` }));
      if (pair.length === 1 || (pair.length && pair[0] === pair[1])) throw new Error("Give two different words to choose between, or none.");
      if (text !== state.text) state.names = {};
      Object.assign(state, { text, answer: words[0], other: words[1] });
      this.pair = pair.length ? pair : null;
      this.list = tokens;
      this.ids = tokens.map((token) => token.id);
      this.name();
      this.before = await ask("run", { ids: this.ids, moves: [], pair: this.pair });
      this.after = state.moves.length ? await ask("run", { ids: this.ids, moves: state.moves, pair: this.pair }) : this.before;
      const n = state.moves.length;
      this.say(`${this.ids.length} tokens, ${Math.round(this.before.ms)} ms${n ? `, with what you changed: ${n}` : ""}.`);
      this.draw();
      await this.openHead(parse(state.open ?? "") ?? this.strongest(), false);
    } catch (error) { this.say(error.message, true); }
  }

  /* The latest setting is run as soon as the model is free; those between are left out. */
  async move() {
    this.wanted = this.state.moves.map((move) => ({ ...move }));
    if (this.busy) return this.busy;
    return (this.busy = (async () => {
      try {
        while (this.wanted) {
          const moves = this.wanted;
          this.wanted = null;
          this.after = await ask("run", { ids: this.ids, moves, pair: this.pair });
          this.steps = [...(this.steps ?? []), this.after.ms].slice(-200);
          if (!moves.length) this.after = this.before;
          this.draw();
          await this.refreshHead();
        }
        this.say(`${this.ids.length} tokens, ${Math.round(this.after.ms)} ms.`);
      } catch (error) { this.say(error.message, true); } finally { this.busy = null; }
    })());
  }

  /* For tests: the worker itself, and plain numbers for a prompt. */
  ask(what, given) { return ask(what, given); }
  async raw(text, moves) {
    const ids = (await ask("tokens", { text })).map(({ id }) => id), { logits, pattern } = await ask("run", { ids, moves, pair: null });
    return { logits: [...logits], pattern: [...pattern] };
  }

  set(move, amount, how) {
    const same = (other) => label(other) === label(move);
    this.state.moves = this.state.moves.filter((other) => !same(other));
    if (amount !== null) this.state.moves.push(move.component === undefined ? { ...move, amount } : { ...move, how, amount });
    return this.move();
  }

  strongest() {
    const { direct } = this.before, best = direct.reduce((a, value, i) => (Math.abs(value) > Math.abs(direct[a]) ? i : a), 0);
    return { layer: Math.floor(best / this.shape.n_heads), head: best % this.shape.n_heads };
  }

  /* --- drawing --- */

  /* Names of tokens: the preset's or a list's, by the word that they stand for, and those a reader gave. */
  name() {
    const { text, names } = this.state, spots = this.spots ?? this.preset.names ?? [];
    if (Object.keys(names).length) return;
    for (const { word, nth, label } of spots) {
      let at = -1;
      for (let i = 0; i <= nth; i++) at = text.indexOf(word, at + 1);
      const i = this.list.findIndex(({ from, to }) => at >= 0 && from <= at && at < to);
      if (i >= 0) names[i] = label;
    }
    names[this.list.length - 1] ??= "end";
  }

  draw() {
    const { state } = this;
    this.tokens.replaceChildren(...this.list.map((token, i) => el("button", { type: "button", title: `token ${i}: ${JSON.stringify(token.text)}`,
      "aria-pressed": i in state.names ? "true" : "false", onclick: () => {
        const name = this.naming.value.trim();
        if (!name || state.names[i] === name) delete state.names[i]; else state.names[i] = name;
        this.draw();
        this.refreshHead();
      } }, el("span", {}, shown(token.text)), el("small", {}, state.names[i] ?? "\u00a0"))));
    this.drawTop();
    this.drawGrid();
    this.drawChanges();
  }

  drawTop() {
    const { before, after } = this, moved = after !== before, seen = new Map(after.top.map((one) => [one.token, one.text]));
    if (moved) for (const { token, text } of before.top.slice(0, 2)) seen.set(token, text); // also where they fell
    const top = Math.max(...[...seen.keys()].map((token) => Math.max(before.odds[token], after.odds[token])));
    const rows = [...seen].map(([token, text]) => {
      const [was, now] = [before.odds[token], after.odds[token]];
      return bar(shown(text), was, now, top, share(was) === share(now) ? share(now) : `${share(was)} → ${share(now)}`);
    });
    const difference = this.pair && el("p", { class: "difference" }, `logit of ${this.state.answer} less ${this.state.other}: `,
      el("strong", {}, moved ? `${number(before.difference)} → ${number(after.difference)}` : number(before.difference)));
    this.top.replaceChildren(el("ol", { class: "bars" }, ...rows), ...(difference ? [difference] : []));
  }

  drawGrid() {
    const { n_layers, n_heads } = this.shape, { direct } = this.after;
    const top = Math.max(...direct.map(Math.abs)), cells = [];
    for (let head = 0; head < n_heads; head++) {
      const row = el("div", { role: "row" });
      for (let layer = 0; layer < n_layers; layer++) {
        const value = direct[layer * n_heads + head], name = label({ layer, head }), moved = this.state.moves.some((move) => move.layer === layer && move.head === head);
        row.append(el("button", { type: "button", role: "gridcell", tabindex: name === this.state.open ? 0 : -1, "aria-selected": name === this.state.open ? "true" : "false",
          class: moved ? "moved" : "", title: this.pair ? `${name}: ${signed(value)}` : name, "aria-label": this.pair ? `${name}, ${signed(value)}` : name, "data-head": name,
          style: this.pair && top ? `--p:${Math.round(100 * Math.abs(value) / top)}%;--hue:var(--${value < 0 ? "other" : "answer"})` : "",
          onclick: () => this.openHead({ layer, head }) }));
      }
      cells.push(row);
    }
    const focused = this.grid.contains(document.activeElement) ? document.activeElement.dataset.head : null;
    this.grid.replaceChildren(...cells);
    if (!this.grid.querySelector("[tabindex='0']")) this.grid.querySelector("button").tabIndex = 0;
    if (focused) this.grid.querySelector(`[data-head="${focused}"]`).focus();
    this.scale.textContent = this.pair ? `Layers 0 to ${n_layers - 1} left to right, heads 0 to ${n_heads - 1} downward. Blue: toward ${this.state.answer}, orange: toward ${this.state.other}, at most ${number(top)} of logit.` : "Two words to choose between colour the heads.";
  }

  walk(event) {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key], from = parse(event.target.dataset?.head ?? "");
    if (!step || !from) return;
    event.preventDefault();
    const to = this.grid.querySelector(`[data-head="${label({ layer: from.layer + step[0], head: from.head + step[1] })}"]`);
    if (!to) return;
    event.target.tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
  }

  async openHead(at, focus = true) {
    if (!at || at.layer >= this.shape.n_layers || at.head >= this.shape.n_heads) {
      return this.say(`There is no such head: layers are 0 to ${this.shape.n_layers - 1}, heads 0 to ${this.shape.n_heads - 1}, as in L9H3.`, true);
    }
    this.state.open = label(at);
    this.all = false;
    const reader = parse(this.state.reader ?? "");
    if (!reader || reader.layer <= at.layer) this.state.reader = this.nextReader(at);
    this.grid.querySelectorAll("[aria-selected='true']").forEach((cell) => cell.setAttribute("aria-selected", "false"));
    this.grid.querySelector(`[data-head="${this.state.open}"]`).setAttribute("aria-selected", "true");
    try {
      await this.loadHead();
      if (focus) this.head.scrollIntoView({ block: "nearest" });
    } catch (error) { this.say(error.message, true); }
  }

  /* Of the later heads the one that writes most toward the answer. */
  nextReader({ layer }) {
    const { direct } = this.before, n = this.shape.n_heads;
    if (layer + 1 >= this.shape.n_layers) return null;
    let best = (layer + 1) * n;
    for (let i = best; i < direct.length; i++) if (direct[i] > direct[best]) best = i;
    return label({ layer: Math.floor(best / n), head: best % n });
  }

  asking(moves) { return { ids: this.ids, moves, pair: this.pair, ...parse(this.state.open) }; }

  async loadHead() {
    const reader = parse(this.state.reader ?? "");
    this.was = await ask("head", { ...this.asking([]), reader });
    this.now = this.state.moves.length ? await ask("head", this.asking(this.state.moves)) : this.was;
    this.drawHead();
  }

  async refreshHead() {
    if (!this.was) return;
    this.now = this.state.moves.length ? await ask("head", this.asking(this.state.moves)) : this.was;
    this.drawAttention();
    this.drawValues();
  }

  drawHead() {
    const { state } = this, at = parse(state.open), headMove = state.moves.find((move) => label(move) === state.open);
    const out = el("output", {}, number(headMove?.amount ?? 1, 1)), slider = el("input", { type: "range", min: -1, max: 2, step: 0.1, value: headMove?.amount ?? 1, "aria-label": `factor of ${state.open} at every token`,
      oninput: () => { out.textContent = number(Number(slider.value), 1); this.set(at, Number(slider.value)); } });
    const to = (value) => () => { slider.value = value; out.textContent = number(value, 1); this.set(at, value === 1 ? null : value); };
    const reader = el("input", { size: 7, value: state.reader ?? "", "aria-label": "a later head", onchange: () => {
      const found = parse(reader.value);
      if (!found || found.layer <= at.layer || found.layer >= this.shape.n_layers || found.head >= this.shape.n_heads) return this.say(`A reader is a head of a later layer than ${at.layer}.`, true);
      state.reader = label(found);
      this.loadHead().catch((error) => this.say(error.message, true));
    } });
    this.attention = el("ol", { class: "bars attention" });
    const order = [...this.was.now.keys()].sort((a, b) => Math.abs(this.was.now[b]) - Math.abs(this.was.now[a]));
    const moved = state.moves.filter((move) => move.component !== undefined && label({ ...at }) === label({ layer: move.layer, head: move.head })).map(({ component }) => component);
    const some = this.all ? order : [...new Set([...moved, ...order.slice(0, 6)])];
    this.rows = new Map(some.map((component) => [component, this.componentRow(at, component)]));
    this.head.replaceChildren(
      el("h4", {}, `Head ${state.open}`),
      el("p", { class: "note" }, "What it looks at from the last token:"), this.attention,
      el("p", { class: "figure-controls" }, el("label", {}, "whole head, at every token, times ", slider, " ", out),
        el("button", { type: "button", onclick: to(0) }, "remove"), el("button", { type: "button", onclick: to(1) }, "reset")),
      el("p", { class: "note" }, "What it writes there, component by component. s: singular values. Q, K, V: how much of each the head ", reader, " reads, as composition scores."),
      el("div", { class: "wide" }, el("table", {}, el("thead", {}, el("tr", {}, ...["component", "coefficient", "set it", "", "s", "Q", "K", "V"].map((text) => el("th", { scope: "col" }, text)))),
        el("tbody", {}, ...[...this.rows.values()].map(({ row }) => row)))),
      el("button", { type: "button", onclick: () => { this.all = !this.all; this.drawHead(); } }, this.all ? "fewer" : `all ${this.was.now.length}`));
    this.drawAttention();
    this.drawValues();
  }

  componentRow(at, component) {
    const me = { ...at, component }, was = this.was.now[component], move = this.state.moves.find((other) => label(other) === label(me));
    const span = Math.max(2, Math.ceil(3 * Math.max(Math.abs(was), move ? Math.abs(move.amount) : 0)));
    const slider = el("input", { type: "range", min: -span, max: span, step: move ? "any" : span / 100, value: move?.amount ?? was, "aria-label": `coefficient of ${label(me)}`,
      oninput: () => this.set(me, Number(slider.value), "set") });
    const value = el("td", { class: "value" }), scores = this.was.scores?.[component];
    const button = (text, then) => el("button", { type: "button", onclick: then }, text);
    const row = el("tr", {}, el("th", { scope: "row" }, label(me)), value, el("td", {}, slider),
      el("td", {}, button("remove", () => { slider.value = 0; this.set(me, 0, "set"); }), button("reset", () => { slider.value = was; this.set(me, null); })),
      ...[this.was.singular[component], scores?.Q, scores?.K, scores?.V].map((number_) => el("td", {}, number_ === undefined ? "" : number(number_))));
    return { row, value };
  }

  drawValues() {
    for (const [component, { value }] of this.rows) {
      const [was, now] = [this.was.now[component], this.now.now[component]];
      value.textContent = Math.abs(was - now) < 0.005 ? number(was) : `${number(was)} → ${number(now)}`;
    }
  }

  drawAttention() {
    const { layer, head } = parse(this.state.open), n = this.list.length, at = (layer * this.shape.n_heads + head) * n;
    const before = this.before.pattern.subarray(at, at + n), after = this.after.pattern.subarray(at, at + n), moved = this.after !== this.before;
    const order = n > 24 ? [...after.keys()].sort((a, b) => after[b] - after[a]).slice(0, 16).sort((a, b) => a - b) : [...after.keys()];
    const top = Math.max(0.05, ...before, ...after);
    this.attention.replaceChildren(...order.map((i) => bar(`${shown(this.list[i].text)}${this.state.names[i] ? ` (${this.state.names[i]})` : ""}`, moved ? before[i] : after[i], after[i], top,
      moved && Math.abs(before[i] - after[i]) >= 0.005 ? `${share(before[i])} → ${share(after[i])}` : share(after[i]))));
    if (order.length < n) this.attention.append(el("li", { class: "note" }, `the ${order.length} largest of ${n} tokens`));
  }

  /* --- what was changed: to undo, to send, to run elsewhere --- */

  drawChanges() {
    const { moves } = this.state;
    const list = moves.map((move) => el("li", {}, `${label(move)} ${move.component === undefined ? `times ${number(move.amount, 1)}, at every token` : `set to ${number(move.amount)}, at the last token`} `,
      el("button", { type: "button", "aria-label": `undo the change of ${label(move)}`, onclick: () => this.set(move, null).then(() => this.drawHead()) }, "undo")));
    const copy = (make, done) => async (event) => {
      await navigator.clipboard?.writeText(make()).catch(() => {});
      event.target.textContent = done;
    };
    this.changes.replaceChildren(el("h4", {}, "What did I change?"),
      list.length ? el("ul", {}, ...list) : el("p", { class: "note" }, "Nothing yet: move a slider of a component."),
      el("p", { class: "figure-controls" },
        el("button", { type: "button", onclick: () => { this.state.moves = []; this.move().then(() => this.drawHead()); } }, "Undo all"),
        el("button", { type: "button", onclick: copy(() => this.link(), "Link copied") }, "Copy a link to this"),
        el("button", { type: "button", onclick: copy(() => this.python(), "Lines copied") }, "Copy as Python")),
      el("pre", {}, this.python()));
    history.replaceState(null, "", moves.length || this.linked ? this.link() : location.href.split("#")[0] + (location.hash.includes("=") ? "" : location.hash));
  }

  link() {
    const hash = new URLSearchParams({ [this.id]: coded(this.state) });
    return `${location.href.split("#")[0]}#${hash}`;
  }

  python() {
    const { text, answer, other, moves } = this.state, of = (keep) => moves.filter(keep).map((move) => `"${label(move)}": ${Number(move.amount.toPrecision(8))}`).join(", ");
    const set = of((move) => move.component !== undefined), scale = of((move) => move.component === undefined);
    const parts = [`"${this.preset.model}"`, quoted(text), ...(set ? [`set={${set}}`] : []), ...(scale ? [`scale={${scale}}`] : [])];
    const lead = /[\s]$/.test(text) ? "" : " ";
    return `import talking_heads_utils as th\n\nsaid = th.ask(${parts.join(", ")})\nsaid.likeliest()${this.pair ? `, said.logit_diff(${quoted(lead + answer)}, ${quoted(lead + other)})` : ""}`;
  }
}

instruments.push(...[...document.querySelectorAll("div.instrument")].map((div) => new Instrument(div)));
window.bookInstruments = Object.fromEntries(instruments.map((one) => [one.id, one])); // for those who look behind the page
