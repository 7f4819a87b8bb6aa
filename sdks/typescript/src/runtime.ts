/** ONNX Runtime Web: a graph that is run on batches of sequences, or token by token, on WebAssembly or on WebGPU. */

import { BundleError, DeviceError, UsageError } from "./errors.js";
import type { Matrix } from "./tasks/base.js";
import type { Sequence } from "./tokenizer.js";

export type Device = "wasm" | "webgpu";

/** A graph that is ready to run. */
export interface Engine {
  readonly device: Device;
  /** Threads on WebAssembly. */
  readonly threads: number;
  /** Return the outputs of each sequence, which are computed together. */
  run(sequences: readonly Sequence[]): Promise<Matrix[]>;
  /** Of a model that writes: read tokens behind those that were read before, and return what may come next. */
  next(ids: readonly number[], past?: Past): Promise<Next>;
  release(): Promise<void>;
}

/** What a model remembers of the tokens that it has read: keys and values. It is used once, or released. */
export interface Past {
  length: number;
  values: Record<string, any>;
  release(): void;
}

export interface Next {
  /** Of each token of the vocabulary, how likely it is to come next. */
  logits: Float32Array;
  past: Past;
}

/** What is opened: the graph, weights that lie beside it, and how its inputs and outputs are used. */
export interface Graph {
  content: Uint8Array<ArrayBuffer>;
  beside: { path: string; data: Uint8Array<ArrayBuffer> }[];
  padId: number;
  output: "row" | "token" | "embedding" | "vocabulary";
}

export type Opener = (graph: Graph, device: Device, threads: number, folder?: string) => Promise<Engine>;

let bundled: string | undefined;

/** Say where onnxruntime-web's own files are: called by the bundle that an export brings. */
export function bundledRuntime(folder: string): void {
  bundled = folder;
}

/** Return how many threads can be used here: one, unless the page is isolated from other origins (COOP and COEP). */
export function usableThreads(): number {
  return globalThis.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
}

/** Say whether WebGPU is here, with the float16 that a graph may need. */
export async function hasWebGpu(half: boolean): Promise<boolean> {
  const gpu = (globalThis.navigator as any)?.gpu;
  const adapter = await gpu?.requestAdapter().catch(() => null);
  return Boolean(adapter) && (!half || adapter.features.has("shader-f16"));
}

/**
 * Open a graph.
 *
 * @param folder where onnxruntime-web's files are; where the library itself looks if not given.
 * @throws DeviceError: the device cannot be used. BundleError: the graph cannot be read.
 */
export const openOnnx: Opener = async (graph, device, threads, folder = bundled) => {
  const ort = device === "webgpu" ? await import("onnxruntime-web/webgpu") : await import("onnxruntime-web/wasm");
  const env = ort.env.wasm;
  const before = started.get(device);
  if (before !== undefined && before !== threads)
    throw new UsageError(`threads=${threads}, but this page has begun with ${before}`, "the same for all models");
  env.numThreads = threads;
  if (folder !== undefined) env.wasmPaths = folder;
  started.set(device, threads);
  ort.env.logLevel = "error";
  let session: any;
  try {
    session = await ort.InferenceSession.create(graph.content, {
      executionProviders: [device],
      externalData: graph.beside,
      logSeverityLevel: 3,
      // what comes in again stays on the graphics card
      ...(device === "webgpu" && graph.output === "vocabulary" ? { preferredOutputLocation: "gpu-buffer" } : {}),
    });
  } catch (error) {
    const reason = String((error as Error).message ?? error).split("\n")[0].slice(0, 300);
    if (device === "webgpu") throw new DeviceError(`WebGPU cannot run this model: ${reason}`, 'device: "wasm"');
    throw new BundleError(`ONNX Runtime Web cannot open the model: ${reason}`, "export it again");
  }
  return new OnnxEngine(ort, session, graph, device, threads);
};

const started = new Map<Device, number>();

class OnnxEngine implements Engine {
  private last: Promise<unknown> = Promise.resolve();

  constructor(
    private readonly ort: any,
    private readonly session: any,
    private readonly graph: Graph,
    readonly device: Device,
    readonly threads: number,
  ) {}

  async run(sequences: readonly Sequence[]): Promise<Matrix[]> {
    const longest = Math.max(...sequences.map(({ ids }) => ids.length));
    const rectangle = (fill: number, line: (one: Sequence) => readonly number[]): unknown => {
      const data = new BigInt64Array(sequences.length * longest).fill(BigInt(fill));
      sequences.forEach((one, i) => line(one).forEach((value, k) => (data[i * longest + k] = BigInt(value))));
      return new this.ort.Tensor("int64", data, [sequences.length, longest]);
    };
    const lines: Record<string, () => unknown> = {
      input_ids: () => rectangle(this.graph.padId, ({ ids }) => ids),
      attention_mask: () => rectangle(0, ({ ids }) => ids.map(() => 1)),
      token_type_ids: () => rectangle(0, ({ types }) => types ?? []),
    };
    const inputs: Record<string, unknown> = {};
    for (const name of this.session.inputNames as string[]) {
      if (!(name in lines)) throw new BundleError(`the graph asks for ${name}`, "export the model again");
      inputs[name] = lines[name]();
    }
    const found = await this.computed(inputs);
    return sequences.map(({ ids }, i) => this.read(found, i, ids.length, longest));
  }

  async next(ids: readonly number[], past?: Past): Promise<Next> {
    const before = past?.length ?? 0;
    const length = before + ids.length;
    const line = (values: readonly number[]): unknown =>
      new this.ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
    const lines: Record<string, () => unknown> = {
      input_ids: () => line(ids),
      attention_mask: () => line(new Array(length).fill(1)),
      position_ids: () => line(ids.map((_, i) => before + i)),
    };
    const inputs: Record<string, unknown> = {};
    for (const { name, shape } of this.session.inputMetadata as { name: string; shape: number[] }[]) {
      if (!(name in lines) && !name.startsWith("past_key_values."))
        throw new BundleError(`the graph asks for ${name}`, "export the model again");
      // (rows, heads, tokens, width)
      const nothing = (): unknown => new this.ort.Tensor("float32", new Float32Array(0), [1, shape[1], 0, shape[3]]);
      inputs[name] = lines[name]?.() ?? past?.values[name] ?? nothing();
    }
    const found = await this.computed(inputs);
    past?.release();
    const logits: Float32Array = await found.logits.getData(true);
    const values: Record<string, any> = {};
    for (const name of Object.keys(inputs))
      if (!(name in lines)) values[name] = found[name.replace("past_key_values", "present")];
    const release = (): void => Object.values(values).forEach((value) => value.dispose());
    return { logits: logits.slice(-found.logits.dims[2]), past: { length, values, release } };
  }

  async release(): Promise<void> {
    await this.session.release();
  }

  /** Run the graph once nothing else runs on it. */
  private computed(inputs: Record<string, unknown>): Promise<any> {
    const run = (): Promise<any> => this.session.run(inputs);
    const found = this.last.then(run, run);
    this.last = found;
    return found;
  }

  private read(found: any, i: number, length: number, longest: number): Matrix {
    const { output } = this.graph;
    if (output === "row") {
      const [, width] = found.logits.dims;
      return { data: found.logits.data.slice(i * width, (i + 1) * width), width };
    }
    const tokens = (tensor: any): Matrix => {
      const width = tensor.dims[2] ?? 1;
      return { data: tensor.data.slice(i * longest * width, (i * longest + length) * width), width };
    };
    if (output === "embedding") return mean(tokens(found.last_hidden_state));
    if (!found.start_logits) return tokens(found.logits);
    const [starts, ends] = [tokens(found.start_logits), tokens(found.end_logits)];
    const data = new Float32Array(2 * length);
    for (let k = 0; k < length; k++) data.set([starts.data[k], ends.data[k]], 2 * k);
    return { data, width: 2 };
  }
}

function mean({ data, width }: Matrix): Matrix {
  const sums = new Float64Array(width);
  data.forEach((value, i) => (sums[i % width] += value));
  return { data: Float32Array.from(sums, (sum) => (sum * width) / data.length), width };
}
