/**
 * How a request goes to a server and its answer comes back: limits of time, repetitions, and errors of their kind.
 *
 * A request is sent again only where nothing of an answer was consumed, and where that does no harm: nobody was reached,
 * the server has too much to do (429, 503), or something before it could not reach it (502, 504). Where the connection
 * ended without an answer it is sent again unless a model writes: that may have begun. See `client/faults.py`.
 */

import { BusyError, LLMasOSError, OverdueError, RemoteError, TooLongError, UnavailableError, UsageError } from "../errors.js";

/** What every call takes. */
export interface CallOptions {
  /** Ends the call, which then throws the signal's reason, and its work at the server. */
  signal?: AbortSignal;
  /** Seconds for the whole call, or to the first piece of a stream, and between two; the client's if not given. */
  timeout?: number;
  /** The model's name; the client's if not given, else the server's first. */
  model?: string;
}

/** What reaches a server: `fetch`, or what takes its place. */
export type Fetch = (url: string, init: RequestInit) => Promise<Response>;

export interface Call {
  method: "GET" | "POST";
  path: string;
  body?: unknown;
  /** Whether a model writes: that is not begun twice. */
  writes?: boolean;
  /** A status, besides those of success, that is an answer. */
  accepts?: number;
}

/** Reads what an answer holds. */
export type Reader<Found> = (content: any, request_id?: string) => Found;

/** An answer whose body has not come yet, and what ends it. */
export interface Opened {
  response: Response;
  watch: Watch;
}

export class Transport {
  constructor(
    private readonly base: string,
    private readonly key: string | undefined,
    private readonly timeout: number,
    private readonly retries: number,
    private readonly fetch: Fetch,
  ) {
    this.checked(timeout);
    if (!(retries >= 0)) throw new UsageError(`retries=${retries}`, "0 or more");
  }

  /**
   * Ask, and read the whole answer.
   *
   * @throws LLMasOSError: by what went wrong. The signal's reason: it was aborted.
   */
  ask<Found>(call: Call, options: CallOptions, read: Reader<Found>): Promise<Found> {
    return this.tried(call, options, async (watch) => {
      const response = await this.sent(call, watch);
      const text = await this.reached(() => response.text());
      watch.end();
      const request_id = response.headers.get("x-request-id") ?? undefined;
      try {
        return read(JSON.parse(text), request_id);
      } catch (cause) {
        const reason = `${this.base}${call.path} answers with something else: ${text.slice(0, 160) || "nothing"}`;
        const error = new RemoteError(reason, "is it a server of models?", { cause });
        throw Object.assign(error, { status: response.status, request_id });
      }
    });
  }

  /** Ask, and return an answer whose body is read piece by piece; who reads it ends the watch. */
  open(call: Call, options: CallOptions): Promise<Opened> {
    return this.tried(call, options, async (watch) => ({ response: await this.sent(call, watch), watch }));
  }

  private async tried<Found>(
    call: Call, { signal, timeout }: CallOptions, once: (watch: Watch) => Promise<Found>,
  ): Promise<Found> {
    const seconds = this.checked(timeout ?? this.timeout);
    const until = now() + seconds;
    for (let made = 0; ; made++) {
      const watch = new Watch(seconds, signal);
      watch.wind(until - now());
      try {
        return await once(watch);
      } catch (error) {
        watch.end();
        const told = watch.reason ?? error;
        const asked = told instanceof BusyError ? (told.retry_after ?? 0) : 0;
        const pause = asked + Math.random() * Math.min(LONGEST_PAUSE, PAUSE * 2 ** made);
        if (made >= this.retries || now() + pause >= until || !isRepeatable(told, call)) throw told;
        await slept(pause, signal);
      }
    }
  }

  private async sent({ method, path, body, accepts }: Call, { signal }: Watch): Promise<Response> {
    const headers: Record<string, string> = {};
    if (this.key) headers.Authorization = `Bearer ${this.key}`;
    if (body !== undefined) headers["Content-Type"] = "application/json";
    const { fetch } = this; // a browser's own may not be called as a method
    const asked = { method, headers, body: JSON.stringify(body, finite), signal };
    const response = await this.reached(() => fetch(this.base + path, asked));
    if (response.ok || response.status === accepts) return response;
    throw await failure(response);
  }

  private async reached<Found>(go: () => Promise<Found>): Promise<Found> {
    try {
      return await go();
    } catch (cause) {
      const hint = "is it running? Pages of another origin need its --allow-origin";
      throw new RemoteError(`${this.base} cannot be reached: ${reasonOf(cause)}`, hint, { cause });
    }
  }

  private checked(timeout: number): number {
    if (!(timeout > 0)) throw new UsageError(`timeout=${timeout}`, "seconds, such as 60");
    return timeout;
  }
}

/** Seconds of the first pause, at most; each doubles. */
const PAUSE = 0.5;
const LONGEST_PAUSE = 8;
/** The code of a server of ours that has worked as long as it may: it would do so again. */
const OWN_DEADLINE = "timeout";
/** What Node says where there was no connection; a browser does not tell. */
const UNSENT = ["ECONNREFUSED", "ENOTFOUND", "EAI_AGAIN", "EHOSTUNREACH", "ENETUNREACH", "UND_ERR_CONNECT_TIMEOUT"];

function isRepeatable(error: unknown, { writes }: Call): boolean {
  if (!(error instanceof LLMasOSError)) return false;
  if (error.status !== undefined) return [429, 502, 503, 504].includes(error.status) && error.code !== OWN_DEADLINE;
  return error instanceof RemoteError && (!writes || UNSENT.includes((error.cause as any)?.cause?.code));
}

/** Ends a request when its time is over, or when its caller wants it to. */
export class Watch {
  private readonly controller = new AbortController();
  private timer?: ReturnType<typeof setTimeout>;
  private readonly left = (): void => this.stop(this.given!.reason);

  /** @param seconds the limit, as the error of it says. @param given what its caller ends it with. */
  constructor(
    private readonly seconds: number,
    private readonly given?: AbortSignal,
  ) {
    given?.throwIfAborted();
    given?.addEventListener("abort", this.left);
  }

  get signal(): AbortSignal {
    return this.controller.signal;
  }

  /** Why it was stopped; undefined if it was not. A browser's own error does not always say it. */
  get reason(): unknown {
    return this.signal.aborted ? this.signal.reason : undefined;
  }

  /** Count the time from now on. */
  wind(seconds = this.seconds): void {
    this.rest();
    if (1000 * seconds > LONGEST) return;
    const over = (): void => this.stop(new OverdueError(`no answer within ${this.seconds} s`, "a longer timeout"));
    this.timer = setTimeout(over, 1000 * seconds);
  }

  /** Count no time until it is wound again. */
  rest(): void {
    clearTimeout(this.timer);
  }

  stop(reason: unknown): void {
    this.controller.abort(reason);
  }

  end(): void {
    this.rest();
    this.given?.removeEventListener("abort", this.left);
  }
}

/** Milliseconds that a timer can count; above, it would ring at once. */
const LONGEST = 2 ** 31 - 1;

/** JSON has no NaN: it would become null, which is no wish at all. */
function finite(name: string, value: unknown): unknown {
  if (typeof value === "number" && !Number.isFinite(value)) throw new UsageError(`${name}=${value}`, "a finite number");
  return value;
}

function now(): number {
  return performance.now() / 1000;
}

function reasonOf(error: any): string {
  return error?.cause?.code ?? error?.cause?.message ?? error?.message ?? String(error);
}

async function slept(seconds: number, signal?: AbortSignal): Promise<void> {
  signal?.throwIfAborted();
  await new Promise<void>((done) => {
    const timer = setTimeout(ended, 1000 * seconds);
    signal?.addEventListener("abort", ended);
    function ended(): void {
      clearTimeout(timer);
      signal?.removeEventListener("abort", ended);
      done();
    }
  });
  signal?.throwIfAborted();
}

/** Return the error that a refusal is. */
async function failure(response: Response): Promise<LLMasOSError> {
  const { status, headers } = response;
  const text = await response.text().catch(() => "");
  const { message, code, param } = toldIn(text);
  const error = errorOf(status, code, message ?? `the server answers ${status}: ${text.slice(0, 160) || "nothing"}`);
  if (error instanceof BusyError) error.retry_after = secondsOf(headers.get("retry-after"));
  const told = { status, code: code ?? undefined, param: param ?? undefined };
  return Object.assign(error, told, { request_id: headers.get("x-request-id") ?? undefined });
}

/** What an error says, in OpenAI's form or simpler ones. */
function toldIn(text: string): { message?: string; code?: string; param?: string } {
  try {
    const { error, detail } = JSON.parse(text);
    const told = error ?? detail ?? {};
    return typeof told === "string" ? { message: told } : told;
  } catch {
    return {}; // a page of some proxy
  }
}

function errorOf(status: number, code: string | undefined, message: string): LLMasOSError {
  if (code === "context_length_exceeded") return new TooLongError(message);
  if (status === 401 || status === 403) return new UsageError(message, 'key: "lm-..."');
  if (status === 429) return new BusyError(message);
  if (status === 503) return new UnavailableError(message);
  if (status === 504 || status === 408) return new OverdueError(message);
  return status >= 400 && status < 500 ? new UsageError(message) : new RemoteError(message);
}

/** Return the seconds of a header that has them, or a date. */
function secondsOf(header: string | null): number | undefined {
  if (!header) return undefined;
  const seconds = Number.isNaN(Number(header)) ? (Date.parse(header) - Date.now()) / 1000 : Number(header);
  return Number.isFinite(seconds) ? Math.max(0, Math.ceil(seconds)) : undefined;
}
