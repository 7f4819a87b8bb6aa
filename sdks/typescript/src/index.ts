/** Models of LLMasOS: exported ones in the browser, and those of a server. */

export type { GenerateOptions, Generation, Prompt } from "./author.js";
export * from "./client/index.js";
export { BundleError, DeviceError } from "./errors.js";
export type { Manifest, Progress } from "./folder.js";
export type { Difference, Golden } from "./golden.js";
export { LocalModel, type LoadOptions, type Verified } from "./model.js";
export type { Device, Engine, Graph, Next, Opener, Past } from "./runtime.js";
export { cosine } from "./tasks/similarity.js";
