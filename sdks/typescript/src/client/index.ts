/** Models of a server, asked from Node or from a page. */

export {
  BrokenOffError, BusyError, LLMasOSError, OverdueError, ParityError, RemoteError, TooLongError, UnavailableError, UsageError,
} from "../errors.js";
export type { Model, WritingOptions } from "../interface.js";
export type { Answer, Passage, Question } from "../tasks/answering.js";
export type { Classification, Label, TextRow } from "../tasks/classification.js";
export type { PairRow } from "../tasks/similarity.js";
export type { Entity, Tagged, TaggedWord } from "../tasks/tagging.js";
export type { Message } from "../template.js";
export type {
  CalledTool, Choice, Ranked, Reply, ServedModel, ServerVerified, TokenLogprob, Usage, Written,
} from "./answers.js";
export {
  Client, type ChatOptions, type ClientOptions, type CompletionOptions, type RankingOptions, type ResponseOptions,
  type TagRow, type TaskOptions, type TextOptions,
} from "./client.js";
export { Stream } from "./stream.js";
export type { CallOptions, Fetch } from "./transport.js";
export type * as wire from "./wire.js";
