/**
 * Every error that is raised on purpose, under the names that they have in Python.
 *
 *     LLMasOSError        what is wrong, then what to do (`hint`)
 *     ├── UsageError      a wrong argument, or something this model is not for
 *     ├── BundleError     files that are missing, changed or no model
 *     ├── ParityError     the model is not what it was where it was exported
 *     ├── DeviceError     the device that was asked for is not here
 *     └── RemoteError     files that cannot be fetched
 */
export class LLMasOSError extends Error {
  override readonly name: string = "LLMasOSError";

  constructor(
    readonly reason: string,
    readonly hint?: string,
  ) {
    super(hint ? `${reason}\nhint: ${hint}` : reason);
  }
}

export class UsageError extends LLMasOSError {
  override readonly name = "UsageError";
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
  override readonly name = "RemoteError";
}
