/** Server-sent events from bytes, which may be cut anywhere: within a character, within a line. */

/** One event: its name, "" where it has none, and its data. */
export interface ServerEvent {
  name: string;
  data: string;
}

/** Characters of an event: a response's last one holds the whole answer. */
const LONGEST = 16 << 20;

/** Reads what comes. Lines end by CR, LF or both; those that begin with a colon are comments, to keep a line open. */
export class EventReader {
  private readonly decoder = new TextDecoder();
  private rest = "";
  private name = "";
  private data: string[] = [];

  /**
   * Take bytes; return the events that are whole. What is not whole at the end of a stream is no event.
   *
   * @throws RangeError: one has no end.
   */
  push(bytes: Uint8Array): ServerEvent[] {
    const text = this.rest + this.decoder.decode(bytes, { stream: true });
    const whole = text.endsWith("\r") ? text.slice(0, -1) : text; // a LF that belongs to it may come
    const lines = whole.split(/\r\n|\n|\r/);
    this.rest = lines.pop() + text.slice(whole.length);
    if (this.rest.length > LONGEST) throw new RangeError(`an event has more than ${LONGEST} characters`);
    return lines.flatMap((line) => this.line(line) ?? []);
  }

  private line(line: string): ServerEvent | undefined {
    if (!line) return this.ended();
    const [, field, value] = /^([^:]*):? ?(.*)$/s.exec(line)!;
    if (field === "data") this.data.push(value);
    if (field === "event") this.name = value;
    return undefined;
  }

  private ended(): ServerEvent | undefined {
    const event = this.data.length ? { name: this.name, data: this.data.join("\n") } : undefined;
    this.name = "";
    this.data = [];
    return event;
  }
}
