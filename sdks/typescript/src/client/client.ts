/** A client of a running server: `Client`. */

import { ParityError, RemoteError, UsageError } from "../errors.js";
import type { Model } from "../interface.js";
import type { Answer, Question } from "../tasks/answering.js";
import type { Classification, TextRow } from "../tasks/classification.js";
import type { PairRow } from "../tasks/similarity.js";
import type { Tagged } from "../tasks/tagging.js";
import { placed, type Ranked, type Reply, type ServedModel, type ServerVerified, type Written } from "./answers.js";
import { compared, type GoldenRows } from "./golden.js";
import { Stream } from "./stream.js";
import { Transport, type Call, type CallOptions, type Fetch, type Reader } from "./transport.js";
import type { Asking, Bodies, Chat, Completion, Item, Message, Ranking, Respond, Similar } from "./wire.js";
import {
  GrowingChat, GrowingCompletion, GrowingResponse, readChat, readCompletion, readResponse, type Growing,
} from "./writing.js";

export interface ClientOptions {
  /**
   * The server's address, with or without `/v1`. If not given: `LLMASOS_URL`; in a page where it came from, else
   * port 8000 of this machine.
   */
  url?: string | URL;
  /** What the server asks for, if it does; `LLMASOS_API_KEY` if not given. Whoever opens a page can read its keys. */
  key?: string;
  /** Seconds for a call, tries included; of a stream, those to its first piece, and between two. */
  timeout?: number;
  /** How often a request is sent again where that does no harm. */
  retries?: number;
  /** Who is asked where a call names nobody; the server's first if not given. */
  model?: string;
  /** What takes the place of `fetch`. */
  fetch?: Fetch;
}

type Own = "model" | "stream" | "stream_options";

/** Options of calls that write: those of the route, under its own names. */
export interface ChatOptions extends CallOptions, Omit<Chat, Own | "messages"> {
  /** What the model is told before the conversation. */
  system?: string;
  /** Fields that other servers know. */
  extra?: Record<string, unknown>;
}

export interface CompletionOptions extends CallOptions, Omit<Completion, Own | "prompt"> {
  extra?: Record<string, unknown>;
}

export interface ResponseOptions extends CallOptions, Omit<Respond, Own | "input" | "max_output_tokens"> {
  /** The longest answer, in tokens. */
  max_tokens?: number;
  extra?: Record<string, unknown>;
}

export interface TaskOptions extends CallOptions, Omit<Asking, "inputs" | "model"> {}

export interface TextOptions extends CallOptions, Omit<Similar, "pairs" | "model"> {}

export interface RankingOptions extends CallOptions, Omit<Ranking, "query" | "documents" | "return_documents" | "model"> {}

/** Words that are tagged: a text, or its words. */
export type TagRow = string | { text: string } | { tokens: readonly string[] };

/** A server of models: this project's own, or for chat, completions, responses and vectors any of OpenAI's protocol. */
export class Client implements Model {
  readonly url: string;
  private readonly transport: Transport;
  private readonly verified = new Map<string, ServerVerified>();
  private chosen?: string;

  /** @throws UsageError: the address is none. */
  constructor(options: ClientOptions = {}) {
    const { url, timeout = 60, retries = 2, model, fetch = globalThis.fetch } = options;
    this.url = addressOf(url ?? environment("LLMASOS_URL"));
    this.chosen = model;
    this.transport = new Transport(this.url, options.key ?? environment("LLMASOS_API_KEY"), timeout, retries, fetch);
  }

  // -- the server -----------------------------------------------------------------------------------

  /** List the models. */
  models(options: CallOptions = {}): Promise<ServedModel[]> {
    return this.get("/v1/models", options, ({ data }) => data);
  }

  /** Show a model. */
  model(name: string, options: CallOptions = {}): Promise<ServedModel> {
    return this.get(`/v1/models/${name.split("/").map(encodeURIComponent).join("/")}`, options, (told) => told);
  }

  /** Tell whether the server can be asked: "ready", or "loading", "draining" or "stalled". */
  health(options: CallOptions = {}): Promise<string> {
    const call: Call = { method: "GET", path: "/health/ready", accepts: 503 };
    return this.transport.ask(call, options, ({ status }) => status);
  }

  /**
   * Compare what a model answers with its golden rows, once for each version of it.
   *
   * @throws ParityError: it answers otherwise than it did when it was saved. UsageError: it has no golden rows.
   */
  async verify(options: CallOptions = {}): Promise<ServerVerified> {
    const model = options.model ?? this.chosen;
    const path = model === undefined ? "/v1/golden" : `/v1/golden?model=${encodeURIComponent(model)}`;
    const golden: GoldenRows = await this.get(path, options, (told) => told);
    const known = `${golden.model} ${golden.version}`;
    const found = this.verified.get(known) ?? (await this.compare(golden, options));
    this.verified.set(known, found);
    return found;
  }

  // -- tasks ----------------------------------------------------------------------------------------

  /** Put texts, or pairs of texts, into classes. */
  classify(row: TextRow, options?: TaskOptions): Promise<Classification>;
  classify(rows: readonly TextRow[], options?: TaskOptions): Promise<Classification[]>;
  classify(rows: TextRow | readonly TextRow[], options?: TaskOptions): Promise<any> {
    return this.answers("/v1/classify", rows, options);
  }

  /** Find names and other entities in texts. */
  tag(row: TagRow, options?: TaskOptions): Promise<Tagged>;
  tag(rows: readonly TagRow[], options?: TaskOptions): Promise<Tagged[]>;
  tag(rows: TagRow | readonly TagRow[], options?: TaskOptions): Promise<any> {
    return this.answers("/v1/tag", rows, options);
  }

  /** Find answers to questions in contexts. */
  answer(row: Question, options?: TaskOptions): Promise<Answer>;
  answer(rows: readonly Question[], options?: TaskOptions): Promise<Answer[]>;
  answer(rows: Question | readonly Question[], options?: TaskOptions): Promise<any> {
    return this.answers("/v1/answer", rows, options);
  }

  /** Translate texts. */
  translate(row: string | object, options?: TaskOptions): Promise<Written>;
  translate(rows: readonly (string | object)[], options?: TaskOptions): Promise<Written[]>;
  translate(rows: any, options?: TaskOptions): Promise<any> {
    return this.answers("/v1/translate", rows, options);
  }

  /** Summarise texts. */
  summarize(row: string | object, options?: TaskOptions): Promise<Written>;
  summarize(rows: readonly (string | object)[], options?: TaskOptions): Promise<Written[]>;
  summarize(rows: any, options?: TaskOptions): Promise<any> {
    return this.answers("/v1/summarize", rows, options);
  }

  /** Answer rows, whatever the model's task; a list gives a list. */
  predict(rows: string | object | readonly (string | object)[], options?: TaskOptions): Promise<any> {
    return this.answers("/v1/predict", rows, options);
  }

  /** Tell how close pairs of texts are in meaning, -1 to 1. */
  similarity(pairs: readonly PairRow[], options: TextOptions = {}): Promise<number[]> {
    const both = pairs.map((pair) => ("anchor" in pair ? ([pair.anchor, pair.positive] as const) : pair));
    return this.post("/v1/similarity", { pairs: both, ...fieldsOf(options) }, options, ({ scores }) => scores);
  }

  /** Order texts by how close they are to a query, the closest first; `top_n` of them, or all. */
  rerank(query: string, documents: readonly string[], options: RankingOptions = {}): Promise<Ranked[]> {
    const read: Reader<Ranked[]> = ({ results }) =>
      results.map(({ index, relevance_score }: any) => ({ index, score: relevance_score, document: documents[index] }));
    return this.post("/v1/rerank", { query, documents, ...fieldsOf(options) }, options, read);
  }

  /** Make vectors of texts. */
  embed(text: string, options?: CallOptions): Promise<Float32Array>;
  embed(texts: readonly string[], options?: CallOptions): Promise<Float32Array[]>;
  async embed(texts: string | readonly string[], options: CallOptions = {}): Promise<any> {
    const model = await this.named(options);
    const read: Reader<Float32Array[]> = ({ data }) => data.map(({ embedding }: any) => vector(embedding));
    const body = { input: texts, encoding_format: "base64", model } as const;
    const found = await this.post("/v1/embeddings", body, options, read);
    return typeof texts === "string" ? found[0] : found;
  }

  // -- writing --------------------------------------------------------------------------------------

  /** Answer a conversation, or one question. */
  async chat(messages: string | readonly Message[], options: ChatOptions = {}): Promise<Reply> {
    const body = { ...chatBody(messages, options), model: await this.named(options) };
    return this.post("/v1/chat/completions", body, options, readChat, true);
  }

  /** As `chat`, piece by piece. */
  stream(messages: string | readonly Message[], options: ChatOptions = {}): Stream {
    return this.streamed("/v1/chat/completions", { ...chatBody(messages, options), ...COUNTED }, options, new GrowingChat());
  }

  /** Write on from a text, or from its tokens; of several there are as many choices, or `n` for each. */
  async complete(prompt: Completion["prompt"], options: CompletionOptions = {}): Promise<Reply> {
    const body = { prompt, ...fieldsOf(options), model: await this.named(options) };
    return this.post("/v1/completions", body, options, readCompletion, true);
  }

  /** As `complete`, piece by piece. */
  stream_completion(prompt: Completion["prompt"], options: CompletionOptions = {}): Stream {
    const body = { prompt, ...fieldsOf(options), ...COUNTED };
    return this.streamed("/v1/completions", body, options, new GrowingCompletion());
  }

  /** Answer a conversation, or one question, by OpenAI's newer route. */
  async respond(input: string | readonly Item[], options: ResponseOptions = {}): Promise<Reply> {
    const body = { ...responseBody(input, options), model: await this.named(options) };
    return this.post("/v1/responses", body, options, readResponse, true);
  }

  /** As `respond`, piece by piece. */
  stream_response(input: string | readonly Item[], options: ResponseOptions = {}): Stream {
    const body = { ...responseBody(input, options), stream: true };
    return this.streamed("/v1/responses", body, options, new GrowingResponse());
  }

  // -- inner ----------------------------------------------------------------------------------------

  private get<Found>(path: string, options: CallOptions, read: Reader<Found>): Promise<Found> {
    return this.transport.ask({ method: "GET", path }, options, read);
  }

  private post<Path extends keyof Bodies, Found>(
    path: Path, body: Bodies[Path], options: CallOptions, read: Reader<Found>, writes = false,
  ): Promise<Found> {
    const named = { ...body, model: body.model ?? options.model ?? this.chosen };
    return this.transport.ask({ method: "POST", path, body: named, writes }, options, read);
  }

  private streamed<Path extends keyof Bodies>(
    path: Path, body: Bodies[Path], options: CallOptions, growing: Growing,
  ): Stream {
    const open = async () => {
      const named = { ...body, model: await this.named(options) };
      return this.transport.open({ method: "POST", path, body: named, writes: true }, options);
    };
    return new Stream(open, growing);
  }

  private answers(
    path: "/v1/classify" | "/v1/tag" | "/v1/answer" | "/v1/translate" | "/v1/summarize" | "/v1/predict",
    inputs: any, options: TaskOptions = {},
  ): Promise<any> {
    const read: Reader<any> = Array.isArray(inputs)
      ? ({ results }) => inputs.map((row, i) => placed(results[i], row))
      : ({ result }) => placed(result, inputs);
    return this.post(path, { inputs, ...fieldsOf(options) }, options, read);
  }

  /** Return who is asked by a route that other servers have too: they know no first model. */
  private async named({ model, signal, timeout }: CallOptions): Promise<string | undefined> {
    if (model ?? this.chosen) return model ?? this.chosen;
    const [first] = await this.models({ signal, timeout }).catch(none); // behind some relays there is no list
    return (this.chosen = first?.id);
  }

  private async compare({ model, version, task, tolerance, rows }: GoldenRows, options: CallOptions): Promise<ServerVerified> {
    let [largest, worst] = [0, ""];
    for (const [i, { path, body, expected }] of rows.entries()) {
      if (!path.startsWith("/v1/")) throw new RemoteError(`golden row ${i + 1} is to be asked at ${path}`);
      const call: Call = { method: "POST", path, body: { ...body, model } };
      const found = await this.transport.ask(call, options, (told) => told);
      const apart = compared(found, expected);
      if (apart.by > largest) [largest, worst] = [apart.by, `golden row ${i + 1}, ${apart.where}`];
    }
    if (!(largest <= tolerance))
      throw new ParityError(
        `${model} answers otherwise than when it was saved: ${worst} ` +
          (largest === Infinity ? "is something else" : `differs by ${largest.toPrecision(3)}, and may by ${tolerance}`),
        "`llmasos verify` on the server's machine says whether its files are whole",
      );
    return { model, version, task, rows: rows.length, largest, tolerance };
  }
}

const COUNTED = { stream: true, stream_options: { include_usage: true } } as const;

function none(error: unknown): ServedModel[] {
  if (error instanceof UsageError) return [];
  throw error;
}

/** Return what goes to the server of a call's options. */
function fieldsOf<Options extends CallOptions & { extra?: Record<string, unknown> }>(
  options: Options,
): Omit<Options, keyof CallOptions | "extra"> {
  const { signal, timeout, model, extra, ...fields } = options;
  return { ...fields, ...extra } as Omit<Options, keyof CallOptions | "extra">;
}

function chatBody(messages: string | readonly Message[], { system, ...options }: ChatOptions): Chat {
  const asked: readonly Message[] = typeof messages === "string" ? [{ role: "user", content: messages }] : messages;
  const told: Message[] = system === undefined ? [] : [{ role: "system", content: system }];
  return { messages: [...told, ...asked], ...fieldsOf(options) };
}

function responseBody(input: string | readonly Item[], { max_tokens, ...options }: ResponseOptions): Respond {
  return { input, max_output_tokens: max_tokens, ...fieldsOf(options) };
}

/** Return a vector of base64, or of numbers where a server knows no base64. */
function vector(told: string | number[]): Float32Array {
  if (typeof told !== "string") return Float32Array.from(told);
  return new Float32Array(Uint8Array.from(atob(told), (character) => character.charCodeAt(0)).buffer);
}

function environment(name: string): string | undefined {
  return (globalThis as any).process?.env?.[name]?.trim() || undefined;
}

function addressOf(given: string | URL | undefined): string {
  const here = (globalThis as any).location?.href as string | undefined;
  const text = String(given ?? (here?.startsWith("http") ? new URL("/", here) : "http://127.0.0.1:8000"));
  const address = URL.canParse(text, here) ? new URL(text, here) : undefined;
  if (!address?.protocol.startsWith("http")) throw new UsageError(`${text} is no address of a server`, "http://127.0.0.1:8000");
  return (address.origin + address.pathname).replace(/\/+$/, "").replace(/\/v1$/, "").replace(/\/+$/, "");
}
