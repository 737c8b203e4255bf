/* The page's engine in node: `node page_model.mjs FOLDER RUNTIME`, and on its input the runs to make: [{ids, moves, pair}]. */
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";
import { PageModel } from "../book/_static/instrument/model.mjs";

const [folder, runtime] = process.argv.slice(2), read = (name) => readFileSync(`${folder}/${name}`);
const ort = await import(pathToFileURL(`${runtime}/ort.wasm.min.mjs`));
Object.assign(ort.env.wasm, { numThreads: 1, wasmBinary: readFileSync(`${runtime}/ort-wasm-simd-threaded.wasm`) });
const model = await PageModel.open(ort, JSON.parse(read("model.json")), async (name) => new Uint8Array(read(name)));
const { Tokenizer } = await import(pathToFileURL(`${runtime}/tokenizers.min.mjs`));
const ids = Array.from(new Tokenizer(JSON.parse(read("tokenizer.json")), {}).encode(process.argv[4]).ids);

const runs = [];
for (const { moves, pair, fresh, head } of JSON.parse(readFileSync(0))) {
  if (fresh) model.states = [];
  const state = await model.run(ids, moves, pair), plain = (list) => list.map((values) => Array.from(values));
  const coefficients = head ? Array.from(await model.coefficients(state, ...head)) : null;
  runs.push({
    logits: Array.from(state.logits), pattern: plain(state.pattern), z: plain(state.z), rms: state.rms,
    direct: plain(state.direct), coefficients,
  });
}
process.stdout.write(JSON.stringify({ ids, runs }));
