/* A language model in the page: layers run one by one in onnxruntime-web, and what happens between two of them is ours.

   `open` takes the runtime, what model.json says, and a function that brings a file; nothing here knows of pages or
   workers, so the same code runs in node. All numbers are float32, all arrays row by row. */

const WEIGHTS = "weights"; // what the graphs call the array that they take their weights from
const BLOCK = 32;

/* --- the checkpoint's own blocks, as numbers --- */

const halves = new Float32Array(65536).map((_, bits) => {
  const sign = bits & 0x8000 ? -1 : 1, power = (bits >> 10) & 31, part = bits & 1023;
  if (power === 31) return part ? NaN : sign * Infinity;
  return sign * (power ? 2 ** (power - 15) * (1 + part / 1024) : 2 ** -24 * part);
});
const half = (bytes, at) => halves[bytes[at] | (bytes[at + 1] << 8)];

/* Each writes the 32 values of the block at `at` into out[to], out[to + step], ... */
const READ = {
  F32: { size: 128, read: (bytes, at, out, to, step) => {
    const view = new DataView(bytes.buffer, bytes.byteOffset + at, 128);
    for (let i = 0; i < BLOCK; i++) out[to + i * step] = view.getFloat32(4 * i, true);
  } },
  Q4_1: { size: 20, read: (bytes, at, out, to, step) => {
    const d = half(bytes, at), m = half(bytes, at + 2);
    for (let i = 0; i < 16; i++) {
      const two = bytes[at + 4 + i];
      out[to + i * step] = Math.fround(d * (two & 15)) + m;
      out[to + (i + 16) * step] = Math.fround(d * (two >> 4)) + m;
    }
  } },
  Q8_0: { size: 34, read: (bytes, at, out, to, step) => {
    const d = half(bytes, at);
    for (let i = 0; i < BLOCK; i++) out[to + i * step] = d * ((bytes[at + 2 + i] << 24) >> 24);
  } },
};

/* A part of a file as the graphs take it: [inputs, outputs]. Blocks lie along inputs; 16 outputs go together, whose
   values lie side by side. */
const transposed = (bytes, part, out) => {
  const { size, read } = READ[part.kind], { rows, cols, offset } = part, per = cols / BLOCK;
  for (let first = 0; first < rows; first += 16)
    for (let b = 0; b < per; b++)
      for (let row = first; row < Math.min(rows, first + 16); row++)
        read(bytes, offset + (row * per + b) * size, out, b * BLOCK * rows + row, rows);
};

/* Rows of a part, or the columns [from, to) of each: from and to are multiples of 32. */
const rowsOf = (bytes, part, rows, from = 0, to = part.cols) => {
  const { size, read } = READ[part.kind], per = part.cols / BLOCK, out = new Float32Array(rows.length * (to - from));
  rows.forEach((row, i) => {
    for (let b = from / BLOCK; b < to / BLOCK; b++)
      read(bytes, part.offset + (row * per + b) * size, out, i * (to - from) + b * BLOCK - from, 1);
  });
  return out;
};
/* Gives an array's memory back at once, where a browser can: its own clearing comes late, and 200 MB go through here. */
export const free = (array) => array.buffer.transfer?.(0);
const upTo = (n) => [...Array(n).keys()];
const dot = (a, b, at = 0, bt = 0, n = b.length) => {
  let sum = 0;
  for (let i = 0; i < n; i++) sum += a[at + i] * b[bt + i];
  return sum;
};

/* --- the model --- */

const layerFile = (l) => `layer-${String(l).padStart(2, "0")}.bin`;

/* What a move makes of a component's coefficient. */
export const moved = ({ how, amount }, now) => (how === "set" ? amount : how === "scale" ? amount * now : now + amount);

export class PageModel {
  /* The weights of one session at a time are held outside the runtime. */
  static async open(ort, about, bring, engine = "wasm") {
    const model = new PageModel(), s = about.shape;
    Object.assign(model, { ort, about, bring, s, attention: [], mlp: [], heads: new Map(), layers: new Map(), states: [] });
    const parts = Object.fromEntries(about.layer.map((part) => [part.name, part]));
    model.parts = parts;
    const graph = {};
    for (const name of ["attention", "mlp"]) graph[name] = await bring(`${name}.onnx`);
    const kept = {}, scratch = (name, n) => (kept[name] ??= new Float32Array(n)); // all layers are of one size
    const session = (name, sources) => {
      const weights = scratch(name, sources.reduce((n, [, part]) => n + part.rows * part.cols, 0));
      let at = 0;
      for (const [bytes, part] of sources) {
        const n = part.rows * part.cols;
        transposed(bytes, part, weights.subarray(at, at + n));
        at += n;
      }
      return ort.InferenceSession.create(graph[name], {
        externalData: [{ path: WEIGHTS, data: new Uint8Array(weights.buffer) }], executionProviders: [engine],
        extra: { session: { disable_prepacking: "1" } }, // packed weights would be held twice, and one token is slower on them
      });
    };
    const [norm, embedding] = about.embedding;
    model.table = await bring("embedding.bin");
    model.embedding = embedding;
    model.norm = rowsOf(model.table, norm, [0]);
    for (let l = 0; l < s.n_layers; l++) {
      const bytes = await bring(layerFile(l));
      const some = (...names) => names.map((name) => [bytes, parts[name]]);
      model.attention.push(await session("attention", some("attn_norm", "W_Q", "W_K", "W_V", "W_O")));
      model.mlp.push(await session("mlp", some("mlp_norm", "W_gate", "W_in", "W_out")));
      free(bytes);
    }
    Object.values(kept).forEach(free);
    return model;
  }

  row(token) { return rowsOf(this.table, this.embedding, [token]); }

  /* Logits out of the embedding's own bytes: as float32 they would be the largest part of all that is held. */
  unembed(x) {
    const { offset, rows, cols } = this.embedding, { size } = READ.Q8_0, bytes = this.table;
    const signed = new Int8Array(bytes.buffer, bytes.byteOffset, bytes.length), logits = new Float32Array(rows);
    for (let row = 0, at = offset; row < rows; row++) {
      let sum = 0;
      for (let k = 0; k < cols; k += BLOCK, at += size) {
        let [a, b, c, d] = [0, 0, 0, 0]; // four sums at a time: each waits for its own last one
        for (let i = k, q = at + 2; i < k + BLOCK; i += 4, q += 4) {
          a += x[i] * signed[q];
          b += x[i + 1] * signed[q + 1];
          c += x[i + 2] * signed[q + 2];
          d += x[i + 3] * signed[q + 3];
        }
        sum += (a + b + c + d) * halves[bytes[at] | (bytes[at + 1] << 8)];
      }
      logits[row] = sum;
    }
    return logits;
  }

  /* What a logit difference of two tokens reads off the stream, but for the stream's own scale. */
  probe(pair) {
    const [a, b] = pair.map((token) => this.row(token));
    return a.map((value, i) => (value - b[i]) * this.norm[i]);
  }

  async layerBytes(l) {
    if (!this.layers.has(l)) {
      if (this.layers.size > 1) this.layers.delete(this.layers.keys().next().value);
      this.layers.set(l, await this.bring(layerFile(l)));
    }
    return this.layers.get(l);
  }

  /* A head's components. write: 64 unit vectors [d_model]; read: z . read[c] is how much of c the head writes. */
  async head(layer, head) {
    const key = `${layer}.${head}`, { d_head: k, d_model: d } = this.s;
    if (this.heads.has(key)) return this.heads.get(key);
    const bytes = await this.layerBytes(layer), W = rowsOf(bytes, this.parts.W_O, upTo(d), head * k, (head + 1) * k);
    const maps = rowsOf(bytes, this.parts.maps, upTo(k).map((c) => head * k + c));
    const singular = rowsOf(bytes, this.parts.singular, [head]), write = new Float32Array(k * d), read = new Float32Array(k * k);
    for (let c = 0; c < k; c++)
      for (let i = 0; i < d; i++) {
        const value = dot(maps, W, c * k, i * k, k);
        write[c * d + i] = value;
        for (let j = 0; j < k; j++) read[c * k + j] += value * W[i * k + j];
      }
    const found = { write, read, singular };
    this.heads.set(key, found);
    return found;
  }

  /* Composition scores of a head's components into a later head: ||v M|| / ||M|| for M = W_Q W_K^T, W_K W_Q^T, W_V W_O. */
  async scores(layer, head, reader) {
    const { d_head: k, d_model: d, n_heads, n_kv } = this.s, kv = Math.floor(reader.head / (n_heads / n_kv));
    const { write } = await this.head(layer, head), bytes = await this.layerBytes(reader.layer);
    const norm = rowsOf(bytes, this.parts.attn_norm, [0]);
    const side = (name, h) => { // [k, d_model]: a head's matrix, the norm's gains folded in
      const W = rowsOf(bytes, this.parts[name], upTo(k).map((j) => h * k + j));
      return W.map((value, i) => value * norm[i % d]);
    };
    const W_O = rowsOf(bytes, this.parts.W_O, upTo(d), reader.head * k, (reader.head + 1) * k); // [d_model, k]
    const out = new Float32Array(k * d).map((_, i) => W_O[(i % d) * k + Math.floor(i / d)]);
    const Q = side("W_Q", reader.head), K = side("W_K", kv), V = side("W_V", kv);
    const gram = (W) => new Float64Array(k * k).map((_, i) => dot(W, W, Math.floor(i / k) * d, (i % k) * d, d));
    const through = (W, G, v, at) => { // v W G W^T v^T
      const seen = new Float64Array(k).map((_, j) => dot(v, W, at, j * d, d));
      return upTo(k).reduce((sum, i) => sum + seen[i] * dot(G, seen, i * k, 0, k), 0);
    };
    const G = { Q: gram(Q), K: gram(K), V: gram(V), O: gram(out) };
    const size = (a, b) => Math.sqrt(dot(a, b)); // ||W_a^T W_b||, both ends by their Gram matrices
    return upTo(k).map((c) => ({
      Q: Math.sqrt(through(Q, G.K, write, c * d)) / size(G.Q, G.K),
      K: Math.sqrt(through(K, G.Q, write, c * d)) / size(G.Q, G.K),
      V: Math.sqrt(through(V, G.O, write, c * d)) / size(G.V, G.O),
    }));
  }

  /* How much of each of a head's components its z writes: [d_head]. */
  async coefficients(state, layer, head) {
    const { read } = await this.head(layer, head), k = this.s.d_head;
    return new Float32Array(k).map((_, c) => dot(state.z[layer], read, head * k, c * k, k));
  }

  /* Run a prompt. ids: its tokens. moves: of components at the last token, {layer, head, component, how, amount} with
     how "set", "scale" or "add"; of heads at every token, {layer, head, amount}, by which z is multiplied. pair: two
     tokens whose logits' difference heads are held against. What an earlier run of the same tokens has in common with
     this one is not run again. */
  async run(ids, moves = [], pair = null) {
    const same = this.states.filter((state) => String(state.ids) === String(ids) && String(state.pair) === String(pair));
    const plans = same.map((state) => ({ state, ...plan(state.moves, moves, this.s.n_layers) }));
    const best = plans.sort((a, b) => a.cost - b.cost)[0];
    if (best && best.first === Infinity) return this.keep(best.state);
    const old = best?.state, all = !best || best.all, first = best?.first ?? 0;
    const { d_model: d, n_layers, n_heads, n_kv, d_head: k } = this.s, T = ids.length, rows = all ? T : 1;
    const state = { ids, moves, pair };
    for (const name of ["k", "v", "pattern", "z", "direct"]) state[name] = old ? [...old[name]] : [];
    state.x = old ? [...old.x] : [rowsOf(this.table, this.embedding, ids)];
    const probe = new this.ort.Tensor("float32", pair ? this.probe(pair) : new Float32Array(d), [d]);
    let x = all ? state.x[first] : state.x[first].subarray((T - 1) * d);
    for (let l = first; l < n_layers; l++) {
      const here = moves.filter((move) => move.layer === l), scale = new Float32Array(n_heads).fill(1);
      for (const move of here) if (move.component === undefined) scale[move.head] = move.amount;
      const past = all ? 0 : T - 1, before = (kept) => this.tensor(past ? kept[l].subarray(0, past * n_kv * k) : new Float32Array(0), [past, n_kv, k]);
      const got = await this.attention[l].run({
        x: this.tensor(x, [rows, d]), scale: this.tensor(scale, [n_heads]), past_k: before(state.k), past_v: before(state.v), probe,
      });
      if (all) { state.k[l] = got.k.data; state.v[l] = got.v.data; }
      for (const name of ["pattern", "z", "direct"]) state[name][l] = got[name].data;
      const middle = got.out.data;
      for (const move of here) if (move.component !== undefined) await this.#move(move, state.z[l], middle, (rows - 1) * d);
      x = (await this.mlp[l].run({ x: this.tensor(middle, [rows, d]) })).out.data;
      if (all) state.x[l + 1] = x;
      else { (state.x[l + 1] = state.x[l + 1].slice()).set(x, (T - 1) * d); }
    }
    const end = x.subarray((rows - 1) * d);
    state.rms = Math.sqrt(dot(end, end) / d + this.s.eps); // direct effects are of the stream's scale: divide by it
    state.logits = this.unembed(Float64Array.from(end, (value, i) => (value * this.norm[i]) / state.rms));
    return this.keep(state);
  }

  /* The untouched run and the last touched one are kept, for the next to run on from. */
  keep(state) {
    this.states = [state, ...this.states.filter((other) => other !== state && String(other.ids) === String(state.ids) && !other.moves.length)].slice(0, 2);
    return state;
  }

  tensor(data, dims) { return new this.ort.Tensor("float32", data, dims); }

  async #move(move, z, out, at) {
    const { layer, head, component: c } = move, { write, read } = await this.head(layer, head), { d_model: d, d_head: k } = this.s;
    const now = dot(z, read, head * k, c * k, k), more = moved(move, now) - now;
    for (let i = 0; i < d; i++) out[at + i] += more * write[c * d + i];
  }
}

/* From which layer on a run differs from one that is kept, and whether at more tokens than the last. */
const plan = (old, moves, n_layers) => {
  const layer = (list, l, heads) => JSON.stringify(list.filter((move) => move.layer === l && (move.component === undefined) === heads));
  const differs = (heads) => upTo(n_layers).find((l) => layer(old, l, heads) !== layer(moves, l, heads)) ?? Infinity;
  const heads = differs(true), components = differs(false), all = heads < Infinity, first = Math.min(heads, components);
  return { first, all, cost: first === Infinity ? 0 : (n_layers - first) * (all ? 10 : 1) };
};

export const softmax = (logits) => {
  const top = logits.reduce((a, b) => Math.max(a, b), -Infinity), odds = Float64Array.from(logits, (value) => Math.exp(value - top));
  const sum = odds.reduce((a, b) => a + b, 0);
  return odds.map((value) => value / sum);
};
export const likeliest = (logits, n = 5) => {
  const best = [];
  logits.forEach((logit, token) => {
    if (best.length === n && logit <= best[n - 1].logit) return;
    best.splice(best.findIndex((other) => other.logit < logit) >>> 0, 0, { token, logit });
    best.length = Math.min(best.length, n);
  });
  return best;
};
