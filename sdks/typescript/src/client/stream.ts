/** An answer that comes piece by piece. */

import { BrokenOffError, LLMasOSError, UsageError } from "../errors.js";
import type { Reply } from "./answers.js";
import { EventReader } from "./events.js";
import type { Opened } from "./transport.js";
import type { Growing } from "./writing.js";

/**
 * Pieces of the first answer, as they come: `for await (const piece of stream)`. Leaving the loop ends the work.
 *
 * It is asked for when the loop begins, or when `reply` is awaited without one.
 */
export class Stream implements AsyncIterable<string> {
  /** What has come so far. */
  text = "";
  private begun = false;
  private opened?: Opened;
  private settle!: { resolve: (reply: Reply) => void; reject: (reason: unknown) => void };
  private readonly end = new Promise<Reply>((resolve, reject) => (this.settle = { resolve, reject }));

  constructor(
    private readonly open: () => Promise<Opened>,
    private readonly growing: Growing,
  ) {
    this.end.catch(() => {}); // who does not ask for the reply need not hear that there is none
  }

  /**
   * The whole answer, once it is there; with it the other answers, calls of tools and counts.
   *
   * @throws BrokenOffError: it ended before its end, or was closed.
   */
  get reply(): Promise<Reply> {
    if (!this.begun) void this.drained();
    return this.end;
  }

  [Symbol.asyncIterator](): AsyncGenerator<string, Reply, void> {
    if (this.begun) throw new UsageError("a stream is read once", "`text` and `reply` hold what it gave");
    this.begun = true;
    return this.pieces();
  }

  /** End it, and its work at the server. */
  close(): void {
    this.begun = true;
    this.opened?.watch.stop(new DOMException("the stream was closed", "AbortError"));
    this.settle.reject(this.broken("it was closed"));
  }

  private async drained(): Promise<void> {
    try {
      for await (const _ of this);
    } catch {
      // `end` has it
    }
  }

  private async *pieces(): AsyncGenerator<string, Reply, void> {
    try {
      this.opened = await this.open();
      for await (const data of this.events(this.opened)) {
        this.opened.watch.signal.throwIfAborted();
        const piece = this.take(data);
        this.text += piece;
        if (piece) yield piece;
      }
      if (!this.growing.ended) throw this.broken("the server went away");
      const reply = this.growing.whole(this.request_id);
      this.settle.resolve(reply);
      return reply;
    } catch (error) {
      const isTold = !this.opened || error instanceof LLMasOSError;
      const told = isTold ? error : (this.opened!.watch.reason ?? this.broken(`${error}`, error));
      this.settle.reject(told);
      throw told;
    } finally {
      this.close(); // what has ended already does not end again
      this.opened?.watch.end();
    }
  }

  /** Yield the data of each event; the time that the caller takes for one does not count. */
  private async *events({ response, watch }: Opened): AsyncGenerator<string, void, void> {
    const events = new EventReader();
    const reader = response.body!.getReader();
    for (;;) {
      watch.wind();
      const { done, value } = await reader.read().catch((error) => this.orEnded(error));
      watch.rest();
      if (done) return;
      for (const { data } of events.push(value)) yield data;
    }
  }

  /** What breaks off behind the end of an answer does it no harm. */
  private orEnded(error: unknown): { done: true; value: undefined } {
    if (this.growing.ended) return { done: true, value: undefined };
    throw error;
  }

  private take(data: string): string {
    if (data === "[DONE]") {
      this.growing.ended = true;
      return "";
    }
    const event = JSON.parse(data);
    const wrong = event.type === "error" ? event : (event.error ?? (event.type === "response.failed" && event.response.error));
    if (wrong) throw Object.assign(this.broken(wrong.message ?? `${wrong}`), { code: wrong.code ?? undefined });
    return this.growing.take(event);
  }

  private broken(why: string, cause?: unknown): BrokenOffError {
    const error = new BrokenOffError(`the answer broke off: ${why}`, "ask again; `text` is what had come", { cause });
    return Object.assign(error, { text: this.text, status: this.opened?.response.status, request_id: this.request_id });
  }

  private get request_id(): string | undefined {
    return this.opened?.response.headers.get("x-request-id") ?? undefined;
  }
}
