/** Models exported by LLMasOS, in the browser. */

export type { GenerateOptions, Generation, Prompt } from "./author.js";
export { BundleError, DeviceError, LLMasOSError, ParityError, RemoteError, UsageError } from "./errors.js";
export type { Manifest, Progress } from "./folder.js";
export type { Difference, Golden } from "./golden.js";
export { LocalModel, type LoadOptions, type Verified } from "./model.js";
export type { Device, Engine, Graph, Next, Opener, Past } from "./runtime.js";
export type { Answer, Passage, Question } from "./tasks/answering.js";
export type { Classification, Label, TextRow } from "./tasks/classification.js";
export { cosine, type PairRow } from "./tasks/similarity.js";
export type { Entity, Tagged, TaggedWord } from "./tasks/tagging.js";
export type { Message } from "./template.js";
