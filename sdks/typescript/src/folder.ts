/** The folder of an exported model, behind a URL. Every file is compared with its digest before it is used. */

import { BundleError, RemoteError } from "./errors.js";

/** How much of a file is there: bytes, and bytes in all where the server says so, else 0. */
export interface Progress {
  file: string;
  loaded: number;
  total: number;
}

/** What `llmasos.json` says of an exported model, as far as it is read here. */
export interface Manifest {
  format: number;
  made_by: string;
  task: { tag: string; [setting: string]: unknown };
  artifact: { target: string; precision: string; files: string[]; [more: string]: unknown };
  files: Record<string, string>;
}

const FORMAT = 1;
const MANIFEST = "llmasos.json";

export class Folder {
  private constructor(
    /** Where it is, with a slash at the end. */
    readonly url: URL,
    readonly manifest: Manifest,
    private readonly progress: (event: Progress) => void,
  ) {}

  /**
   * Read the manifest of a folder.
   *
   * @throws RemoteError: nothing is there. BundleError: it is no exported model, or of a newer version.
   */
  static async open(url: string | URL, progress: (event: Progress) => void = () => {}): Promise<Folder> {
    const base = new URL(url, globalThis.location?.href);
    if (!base.pathname.endsWith("/")) base.pathname += "/";
    const manifest = parsed(await fetched(new URL(MANIFEST, base), MANIFEST, () => {}), MANIFEST) as Manifest;
    if (manifest.format > FORMAT)
      throw new BundleError(`${base} has format ${manifest.format}, this SDK reads up to ${FORMAT}`, "a newer SDK");
    if (!manifest.artifact?.files?.length || !manifest.task?.tag || !manifest.files)
      throw new BundleError(`${base} holds no exported model`, "llmasos export MODEL --target web");
    return new Folder(base, manifest, progress);
  }

  /** Say whether files are compared with their digests: browsers compute them on https and localhost only. */
  get checksDigests(): boolean {
    return globalThis.crypto?.subtle !== undefined;
  }

  /** Return a file's content as JSON. */
  async json(name: string): Promise<any> {
    return parsed(await this.bytes(name), name);
  }

  /**
   * Return a file's content.
   *
   * @throws BundleError: the manifest does not name it, or it was changed. RemoteError: it is not there.
   */
  async bytes(name: string): Promise<Uint8Array<ArrayBuffer>> {
    const wanted = this.manifest.files[name];
    if (wanted === undefined) throw new BundleError(`${MANIFEST} names no ${name}`, "export the model again");
    const content = await fetched(new URL(name, this.url), name, this.progress);
    if (this.checksDigests && (await digest(content)) !== wanted)
      throw new BundleError(`${name} is not the file that was exported`, "copy or export the model again");
    return content;
  }
}

/** Return the sha256 of bytes as hex. */
export async function digest(content: BufferSource): Promise<string> {
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
  return Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function parsed(content: Uint8Array, name: string): unknown {
  try {
    return JSON.parse(new TextDecoder().decode(content));
  } catch (error) {
    throw new BundleError(`${name} is not JSON: ${(error as Error).message}`, "copy or export the model again");
  }
}

async function fetched(
  url: URL,
  name: string,
  progress: (event: Progress) => void,
): Promise<Uint8Array<ArrayBuffer>> {
  let response: Response;
  try {
    response = await fetch(url);
  } catch (error) {
    throw new RemoteError(`${url} cannot be reached: ${(error as Error).message}`, "is the address right?");
  }
  if (!response.ok) throw new RemoteError(`${url}: ${response.status} ${response.statusText}`, "is the folder complete?");
  if (response.body === null) return new Uint8Array(await response.arrayBuffer());
  // a compressed answer's length is not that of the content
  const total = response.headers.has("content-encoding") ? 0 : Number(response.headers.get("content-length") ?? 0);
  const parts: Uint8Array[] = [];
  let loaded = 0;
  const reader = response.body.getReader();
  for (let next = await reader.read(); !next.done; next = await reader.read()) {
    parts.push(next.value);
    loaded += next.value.length;
    progress({ file: name, loaded, total });
  }
  const whole = new Uint8Array(loaded);
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
