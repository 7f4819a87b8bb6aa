/**
 * Every error that is raised on purpose, under the names that they have in Python.
 *
 *     LLMasOSError        what is wrong, then what to do (`hint`)
 *     ├── UsageError            a wrong argument, or something this model is not for
 *     │   └── TooLongError      a prompt that does not fit into the model's context
 *     ├── BundleError           files that are missing, changed or no model
 *     ├── ParityError           the model is not what it was where it was exported or saved
 *     ├── DeviceError           the device that was asked for is not here
 *     ├── RemoteError           a server that cannot be reached, or that failed
 *     │   └── BrokenOffError    a stream that ended before its end: `text` is what arrived
 *     ├── BusyError             a server has as much to do as it may: `retry_after` seconds
 *     │   └── UnavailableError  it cannot do this now: it closes, loads, or lacks memory
 *     └── OverdueError          the time that a request was given is over
 *
 * What a server answered has `status`, and where it says so `code` and `request_id`.
 */
export class LLMasOSError extends Error {
  override readonly name: string = "LLMasOSError";
  /** The HTTP status of a server's answer. */
  status?: number;
  /** The server's word for what is wrong, for machines: "model_not_found", "queue_full", ... */
  code?: string;
  /** The field of the request that is wrong. */
  param?: string;
  /** By which the server's log knows the request. */
  request_id?: string;

  constructor(
    readonly reason: string,
    readonly hint?: string,
    options?: ErrorOptions,
  ) {
    super(hint ? `${reason}\nhint: ${hint}` : reason, options);
  }
}

export class UsageError extends LLMasOSError {
  override readonly name: string = "UsageError";
}

export class TooLongError extends UsageError {
  override readonly name = "TooLongError";
}

export class BundleError extends LLMasOSError {
  override readonly name = "BundleError";
}

export class ParityError extends LLMasOSError {
  override readonly name = "ParityError";
}

export class DeviceError extends LLMasOSError {
  override readonly name = "DeviceError";
}

export class RemoteError extends LLMasOSError {
  override readonly name: string = "RemoteError";
}

export class BrokenOffError extends RemoteError {
  override readonly name = "BrokenOffError";
  /** What arrived of the first answer. */
  text = "";
}

export class BusyError extends LLMasOSError {
  override readonly name: string = "BusyError";
  /** Seconds after which there should be room, where the server says so. */
  retry_after?: number;
}

export class UnavailableError extends BusyError {
  override readonly name = "UnavailableError";
}

export class OverdueError extends LLMasOSError {
  override readonly name = "OverdueError";
}
