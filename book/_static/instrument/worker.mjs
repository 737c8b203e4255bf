/* The model, off the page's own thread: brings its parts, checks and keeps them, and answers one request at a time. */
import { PageModel, free, likeliest, moved, softmax } from "./model.mjs";

const KEPT = "talking-heads-model-"; // the browser's caches: one for each model, by its sum
let model, tokenizer, kept, base, about;

class Sentence extends Error {} // what a reader is told as it stands
const TOO_LITTLE = "This browser has too little memory for the model, which takes some 600 MB. Close other pages, or take another machine; the figures above need no model.";

const openCache = async () => {
  try {
    const name = KEPT + about.made_of.slice(0, 16);
    for (const other of await caches.keys()) if (other.startsWith(KEPT) && other !== name) await caches.delete(other);
    return await caches.open(name);
  } catch { return null; } // a private window may have none
};
const sum = async (bytes) => {
  if (!crypto.subtle) return null; // a page that came by plain http: sizes alone are checked
  return [...new Uint8Array(await crypto.subtle.digest("SHA-256", bytes))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
};

const bring = async (name) => {
  const url = new URL(name, base).href, { bytes: size, sha256 } = about.files[name];
  const held = await kept?.match(url);
  if (held) { const bytes = new Uint8Array(await held.arrayBuffer()); arrived(size); return bytes; }
  const bytes = new Uint8Array(size);
  let at = 0;
  try {
    const response = await fetch(url);
    if (!response.ok) throw new Error(`status ${response.status}`);
    for (const reader = response.body.getReader(); ;) {
      const { done, value } = await reader.read();
      if (done) break;
      if (at + value.length > size) throw new Error("longer than it should be");
      bytes.set(value, at);
      at += value.length;
      arrived(value.length);
      free(value);
    }
    if (at < size) throw new Error("it ends early");
  } catch (error) {
    if (error instanceof RangeError) throw error;
    throw new Sentence(`A part of the model did not arrive (${name}: ${error.message}). Press the button again: what has arrived is kept.`);
  }
  const found = await sum(bytes);
  if (found && found !== sha256) throw new Sentence(`A part of the model arrived damaged (${name}). Press the button again to fetch it anew.`);
  await kept?.put(url, new Response(bytes)).catch(() => {}); // a full disk keeps nothing
  return bytes;
};

let total = 0, loaded = 0, opening = false;
const arrived = (n) => {
  if (!opening) return;
  loaded += n;
  postMessage({ progress: Math.min(1, loaded / total) });
};

const ask = {
  async open({ folder, engine }) {
    [base, loaded, opening] = [folder, 0, true];
    if (engine === "webgpu" && !(await navigator.gpu?.requestAdapter())) throw new Sentence("This browser lends no graphics card to this page. Load the model without one.");
    try {
      about = await (await fetch(new URL("model.json", base))).json();
    } catch { throw new Sentence("The list of the model's parts did not arrive. Are you online? Press the button again."); }
    if (about.missing) throw new Sentence(about.missing);
    const [script, program] = about.engines[engine];
    for (const [name, file] of Object.entries(about.runtime)) about.files[`runtime/${name}`] = file;
    total = [`runtime/${program}`, ...Object.keys(about.files).filter((name) => !name.startsWith("runtime/"))].reduce((n, name) => n + about.files[name].bytes, 0);
    kept = await openCache();
    const ort = await import(new URL(`runtime/${script}`, base)), { Tokenizer } = await import(new URL("runtime/tokenizers.min.mjs", base));
    Object.assign(ort.env.wasm, { numThreads: 1, wasmPaths: new URL("runtime/", base).href, wasmBinary: (await bring(`runtime/${program}`)).buffer });
    tokenizer = new Tokenizer(JSON.parse(new TextDecoder().decode(await bring("tokenizer.json"))), {});
    model = await PageModel.open(ort, about, bring, engine);
    free(new Uint8Array(ort.env.wasm.wasmBinary)); // it is compiled by now
    opening = false;
    return { shape: about.shape, longest: about.longest };
  },

  tokens({ text }) {
    const ids = tokenizer.encode(text).ids;
    if (!text.trim() || !ids.length) throw new Sentence("The prompt is empty: type a text that ends just before the word in question.");
    if (ids.length > about.longest) throw new Sentence(`The prompt has ${ids.length} tokens; this page runs at most ${about.longest}. Shorten it.`);
    let at = 0;
    return ids.map((id, i) => {
      const whole = tokenizer.decode(ids.slice(0, i + 1)), from = at;
      at = whole.endsWith("\ufffd") ? at : whole.length; // half a character says nothing yet
      return { id, text: whole.slice(from, at), from, to: at };
    });
  },

  token({ word }) {
    const ids = tokenizer.encode(word).ids;
    if (ids.length !== 1) throw new Sentence(`“${word.trim()}” is ${ids.length} tokens to this model: take a word that is one.`);
    return ids[0];
  },

  async run({ ids, moves, pair, anew = false }) {
    if (anew) model.states = [];
    const began = performance.now(), state = await model.run(ids, moves, pair), odds = softmax(state.logits);
    const flat = (list) => list.reduce((all, values, l) => { all.set(values, l * values.length); return all; }, new Float32Array(list.length * list[0].length));
    const direct = flat(state.direct).map((value) => value / state.rms);
    return {
      top: likeliest(state.logits).map(({ token, logit }) => ({ token, logit, text: tokenizer.decode([token]), p: odds[token] })),
      odds: Float32Array.from(odds), logits: state.logits,
      difference: pair && state.logits[pair[0]] - state.logits[pair[1]],
      pattern: flat(state.pattern), direct, ms: performance.now() - began,
    };
  },

  async head({ ids, moves, pair, layer, head, reader }) {
    const state = await model.run(ids, moves, pair), { singular } = await model.head(layer, head);
    const now = await model.coefficients(state, layer, head);
    for (const move of moves)
      if (move.layer === layer && move.head === head && move.component !== undefined) now[move.component] = moved(move, now[move.component]);
    return { singular, now, scores: reader ? await model.scores(layer, head, reader) : null };
  },
};

let line = Promise.resolve();
onmessage = ({ data: { id, what, ...given } }) => {
  line = line.then(async () => {
    try {
      postMessage({ id, value: await ask[what](given) });
    } catch (error) {
      const memory = error instanceof RangeError || /memory|alloc|OOM/i.test(String(error?.message ?? error));
      postMessage({ id, error: error instanceof Sentence ? error.message : memory ? TOO_LITTLE : `The model could not go on (${error?.message ?? error}).` });
    }
  });
};
