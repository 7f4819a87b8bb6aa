/** A model that runs where the page is: `LocalModel`. */

import { Author, type GenerateOptions, type Generation, type Prompt } from "./author.js";
import { BundleError, DeviceError, ParityError, UsageError } from "./errors.js";
import { Folder, type Manifest, type Progress } from "./folder.js";
import { compared, encoded, rewritten, type Difference, type Golden } from "./golden.js";
import type { Model } from "./interface.js";
import { hasWebGpu, openOnnx, usableThreads, type Device, type Engine, type Graph, type Opener } from "./runtime.js";
import { QuestionAnswering, type Answer, type Question } from "./tasks/answering.js";
import type { Matrix, Task } from "./tasks/base.js";
import { TextClassification, type Classification, type TextRow } from "./tasks/classification.js";
import { SentenceSimilarity, TextEmbedding, type PairRow } from "./tasks/similarity.js";
import { TokenClassification, type Tagged, type WordsRow } from "./tasks/tagging.js";
import { ChatTemplate, type Message } from "./template.js";
import { TextTokenizer } from "./tokenizer.js";

export interface LoadOptions {
  /**
   * Where the model runs. "auto" takes WebGPU for a float model where there is one, else WebAssembly: integers are
   * computed on WebAssembly alone.
   */
  device?: "auto" | Device;
  /** Told of every piece of a file that has come. */
  progress?: (event: Progress) => void;
  /** Threads on WebAssembly; as many as the page may use if not given (one, without COOP and COEP). */
  threads?: number;
  /** Folder with onnxruntime-web's own files, for bundlers that do not put them beside the code. */
  runtime?: string;
  /** Sequences that are computed together. */
  batchSize?: number;
}

/** What `verify` found equal. */
export interface Verified extends Difference {
  device: Device;
  rows: number;
  /** What the certificate allows, as a share of the largest output. */
  allowed: number;
}

/** An exported model, loaded, and found to be what it was where it was exported. */
export class LocalModel implements Model {
  private constructor(
    /** What `llmasos.json` says. */
    readonly manifest: Manifest,
    /** What the export found: score, tolerance, versions. */
    readonly certificate: any,
    /** Rows that show what the model reads. */
    readonly golden: Golden,
    private readonly tokenizer: TextTokenizer,
    private readonly longest: number,
    private readonly author: Author | undefined,
    private readonly compare: (engine: Engine) => Promise<Difference>,
    private readonly batchSize: number,
    private engine: Engine,
    /** What the user should know: a device that was not used, and why. */
    readonly notes: string[],
  ) {}

  /** What the golden rows gave at the load. */
  verified!: Verified;

  /**
   * Load an exported model and run its golden rows.
   *
   * @param url the folder that `llmasos export --target web` (or `onnx`) wrote.
   * @param open opens the graph; ONNX Runtime Web if not given.
   * @throws ParityError: tokens or numbers are not those of the model. BundleError: files are missing or changed.
   *     DeviceError: WebGPU was asked for and is not here. RemoteError: files cannot be fetched.
   */
  static async load(url: string | URL, options: LoadOptions = {}, open: Opener = openOnnx): Promise<LocalModel> {
    const { device = "auto", threads = usableThreads(), batchSize = 8 } = options;
    if (!["auto", "wasm", "webgpu"].includes(device))
      throw new UsageError(`device=${JSON.stringify(device)}`, '"auto", "webgpu" or "wasm"');
    const folder = await Folder.open(url, options.progress);
    const { artifact } = folder.manifest;
    const small = ["tokenizer.json", "tokenizer_config.json", "config.json", "golden.json", "certificate.json"];
    const [content, settings, config, golden, certificate] = await Promise.all(small.map((name) => folder.json(name)));
    checkCertificate(certificate, folder.manifest);
    const tokenizer = new TextTokenizer(content, settings);
    const longest = longestInput(config, settings);
    const author = artifact.writes ? await authorOf(folder, golden, tokenizer, longest, content, settings) : undefined;
    const { output, compare } = author
      ? ({ output: "vocabulary", compare: (engine: Engine) => rewritten(golden, engine) } as const)
      : answering(golden, taskOf(folder.manifest, tokenizer, Math.min(golden.max_length, longest)));
    const [graph, ...beside] = await Promise.all(artifact.files.map((name) => folder.bytes(name)));
    const opened: Graph = {
      content: graph,
      beside: beside.map((data, i) => ({ path: artifact.files[i + 1].split("/").at(-1) ?? "", data })),
      padId: tokenizer.padId,
      output,
    };
    const notes = folder.checksDigests ? [] : ["files were not compared with their digests: this page is not on https"];
    const made = (engine: Engine): LocalModel =>
      new LocalModel(folder.manifest, certificate, golden, tokenizer, longest, author, compare, batchSize, engine, notes);
    if (device !== "wasm" && (await usesWebGpu(device, artifact.precision))) {
      try {
        const model = made(await open(opened, "webgpu", threads, options.runtime));
        model.verified = await model.checked();
        return model;
      } catch (error) {
        if (!(error instanceof ParityError) && !(error instanceof DeviceError && device === "auto")) throw error;
        notes.push(`on WebAssembly, since on WebGPU ${error.reason}`);
      }
    }
    const model = made(await open(opened, "wasm", threads, options.runtime));
    model.verified = await model.checked();
    return model;
  }

  /** The task's tag: "text-classification", "text-generation", ... */
  get task(): string {
    return this.manifest.task.tag;
  }

  /** Where it runs. */
  get device(): Device {
    return this.engine.device;
  }

  /** Threads that it runs on, where it runs on WebAssembly. */
  get threads(): number {
    return this.engine.threads;
  }

  /** The number format of its weights. */
  get precision(): string {
    return this.manifest.artifact.precision;
  }

  /**
   * Run the golden rows again: tokens must be equal, and numbers within what the certificate allows.
   *
   * @throws ParityError: they are not.
   */
  async verify(): Promise<Verified> {
    this.verified = await this.checked();
    return this.verified;
  }

  /** Label texts, or pairs of texts. */
  classify(row: TextRow): Promise<Classification>;
  classify(rows: readonly TextRow[]): Promise<Classification[]>;
  async classify(rows: TextRow | readonly TextRow[]): Promise<Classification | Classification[]> {
    const task = this.own("text-classification", "classify") as Task<TextRow, Classification>;
    if (Array.isArray(rows)) return this.answers(task, rows);
    return (await this.answers(task, [rows as TextRow]))[0];
  }

  /** Tag the words of a text, given as a text or as its words. */
  async tag(row: string | readonly string[]): Promise<Tagged> {
    const task = this.own("token-classification", "tag") as Task<WordsRow, Tagged>;
    return (await this.answers(task, [row]))[0];
  }

  /** Find the answer to a question in a context. */
  answer(row: Question): Promise<Answer>;
  answer(rows: readonly Question[]): Promise<Answer[]>;
  async answer(rows: Question | readonly Question[]): Promise<Answer | Answer[]> {
    const task = this.own("question-answering", "answer") as Task<Question, Answer>;
    if (Array.isArray(rows)) return this.answers(task, rows);
    return (await this.answers(task, [rows as Question]))[0];
  }

  /** Return a vector of length 1 for each text. */
  async embed(texts: readonly string[]): Promise<Float32Array[]> {
    this.own("sentence-similarity", "embed");
    return this.answers(new TextEmbedding(this.tokenizer, this.longest), texts);
  }

  /** Return the cosine of each pair of texts, -1 to 1; 1 for texts of one meaning. */
  async similarity(pairs: readonly PairRow[]): Promise<number[]> {
    return this.answers(this.own("sentence-similarity", "similarity") as Task<PairRow, number>, pairs);
  }

  /**
   * Answer a conversation, or go on with a text.
   *
   * @throws UsageError: wrong options, or a prompt that does not fit. The reason of `signal`: it was aborted.
   */
  async generate(prompt: Prompt, options: GenerateOptions = {}): Promise<Generation> {
    const pieces = this.stream(prompt, options);
    let next = await pieces.next();
    while (!next.done) next = await pieces.next();
    return next.value;
  }

  /** As `Client.chat`: answer a conversation, or one question. */
  chat(messages: string | readonly Message[], options: GenerateOptions = {}): Promise<Generation> {
    return this.generate(typeof messages === "string" ? [{ role: "user", content: messages }] : messages, options);
  }

  /** As `generate`; yield pieces of the text as they become certain, and return the whole. */
  stream(prompt: Prompt, options: GenerateOptions = {}): AsyncGenerator<string, Generation, void> {
    if (!this.author) throw new UsageError(`this model is for ${this.task}, and writes nothing`, "another model");
    return this.author.write(this.engine, prompt, options);
  }

  /** Give the memory back. */
  async close(): Promise<void> {
    await this.engine.release();
  }

  private own(tag: string, verb: string): Task<any, unknown> {
    if (this.task !== tag) throw new UsageError(`${verb} is for ${tag}, and this model is for ${this.task}`, "another model");
    return taskOf(this.manifest, this.tokenizer, this.longest);
  }

  private async answers<Row, Found>(task: Task<Row, Found>, rows: readonly Row[]): Promise<Found[]> {
    const examples = task.encode(rows);
    const places = examples.flatMap(({ sequences }, i) => sequences.map((sequence, k) => ({ sequence, i, k })));
    places.sort((one, other) => other.sequence.ids.length - one.sequence.ids.length);
    const outputs: Matrix[][] = examples.map(() => []);
    for (let at = 0; at < places.length; at += this.batchSize) {
      const batch = places.slice(at, at + this.batchSize);
      const found = await this.engine.run(batch.map(({ sequence }) => sequence));
      batch.forEach(({ i, k }, j) => (outputs[i][k] = found[j]));
    }
    return task.decode(rows, examples, outputs);
  }

  private async checked(): Promise<Verified> {
    const allowed = Number(this.certificate.tolerance.outputs);
    const found = await this.compare(this.engine);
    const isExact = found.written === undefined || found.written === 1 || this.precision !== "float32";
    if (found.relative <= allowed && isExact) return { ...found, device: this.device, rows: this.golden.rows.length, allowed };
    await this.engine.release();
    if (!isExact)
      throw new ParityError(`${percent(1 - found.written!)} of the golden answers are other tokens`, OTHER_NUMBERS);
    throw new ParityError(
      `an output of golden row ${found.row + 1} differs by ${found.largest.toPrecision(3)}, ` +
        `${percent(found.relative)} of the largest; ${this.precision} allows ${percent(allowed)}`,
      OTHER_NUMBERS,
    );
  }
}

const OTHER_NUMBERS =
  "this browser computes other numbers than the runtime of the export: another browser, or another precision";

function percent(share: number): string {
  return `${(100 * share).toFixed(1)} %`;
}

/** Say whether to try WebGPU. @throws DeviceError: it was asked for and is not here. */
async function usesWebGpu(device: "auto" | "webgpu", precision: string): Promise<boolean> {
  if (device === "auto" && !precision.startsWith("float")) return false;
  const there = await hasWebGpu(precision === "float16");
  if (!there && device === "webgpu") {
    const what = precision === "float16" ? " with float16" : "";
    throw new DeviceError(`there is no WebGPU${what} in this browser`, 'device: "auto" or "wasm"');
  }
  return there;
}

/** Return how many tokens the model takes, special tokens included; as `loading.py` does. */
function longestInput(config: any, settings: any): number {
  let positions = config.max_position_embeddings || 2 ** 30;
  if (config.model_type.includes("roberta") || config.model_type === "camembert") positions -= config.pad_token_id + 1;
  const longest = Math.min(settings.model_max_length ?? Infinity, positions);
  return longest < 2 ** 24 ? longest : 4096;
}

/** Return what is read of the outputs of a model that answers, and how its golden rows are compared. */
function answering(golden: Golden, task: Task<any, unknown>): {
  output: Task<any, unknown>["output"]; compare: (engine: Engine) => Promise<Difference>;
} {
  const examples = encoded(golden, task);
  return { output: task.output, compare: (engine) => compared(golden, examples, engine) };
}

/** Return what writes, compared with Python in all that comes before the model itself. */
async function authorOf(
  folder: Folder, golden: Golden, tokenizer: TextTokenizer, longest: number, content: any, settings: any,
): Promise<Author> {
  const { files } = folder.manifest;
  const optional = async (name: string): Promise<any> => (name in files ? folder.json(name) : {});
  const own = TEMPLATE in files ? new TextDecoder().decode(await folder.bytes(TEMPLATE)) : settings.chat_template;
  const template = typeof own === "string" ? new ChatTemplate(own, content, settings) : undefined;
  const author = new Author(golden, tokenizer, template, longest, await optional("generation_config.json"));
  author.check(golden, await optional("prompts.json"));
  return author;
}

const TEMPLATE = "chat_template.jinja";

function taskOf({ task }: Manifest, tokenizer: TextTokenizer, longest: number): Task<any, unknown> {
  switch (task.tag) {
    case "text-classification":
      return new TextClassification(task, tokenizer, longest);
    case "token-classification":
      return new TokenClassification(task, tokenizer, longest);
    case "question-answering":
      return new QuestionAnswering(task, tokenizer, longest);
    case "sentence-similarity":
      return new SentenceSimilarity(task, tokenizer, longest);
    default:
      throw new UsageError(`a browser answers no ${task.tag} yet`, "serve the model, and call it from the page");
  }
}

function checkCertificate(certificate: any, manifest: Manifest): void {
  const files: Record<string, string> = certificate.files ?? {};
  const wrong = Object.keys(files).filter((name) => manifest.files[name] !== files[name]);
  if (wrong.length || typeof certificate.tolerance?.outputs !== "number")
    throw new BundleError(`the certificate is of other files${wrong.length ? `: ${wrong}` : ""}`, "export the model again");
}
