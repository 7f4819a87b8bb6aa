/** What is wrong, and what to do. */
export class ModelError extends Error {
  constructor(reason: string, hint: string) {
    super(`${reason}\nhint: ${hint}`);
  }
}

/** Tokens or numbers are not those of the model where it was exported. */
export class ParityError extends ModelError {
  override readonly name = "ParityError";

  constructor(reason: string) {
    super(reason, "this device must not run this model");
  }
}

/** The device lacks memory. */
export class DeviceMemoryError extends ModelError {
  override readonly name = "DeviceMemoryError";

  constructor(reason: string) {
    super(reason, "take a smaller model");
  }
}

/** The model is not for what was asked. */
export class UsageError extends ModelError {
  override readonly name = "UsageError";
}
