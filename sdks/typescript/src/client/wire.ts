/** What a server is asked: made from its OpenAPI document by wire.py, and not to be changed by hand. */

/** Inputs for a model with a task. */
export interface Asking {
  /** a text, a row with the task's fields, or a list of either */
  inputs: string | object | readonly (string | object)[];
  /** the model's name; the server's first if not given */
  model?: string | null;
  /** cut inputs that are longer than the model takes, instead of refusing */
  truncate?: boolean;
  /** the longest answer, in tokens, of a model that writes it */
  max_new_tokens?: number | null;
}

/** What was called: `arguments` is JSON. */
export interface CalledFunction {
  name: string;
  arguments: string;
}

/** A conversation that is to be answered. */
export interface Chat {
  /** the model's name; the server's first if not given */
  model?: string | null;
  /** 0 takes the likeliest token */
  temperature?: number | null;
  top_p?: number | null;
  top_k?: number | null;
  min_p?: number | null;
  repetition_penalty?: number | null;
  stream?: boolean | null;
  /** nothing is stored: true is refused */
  store?: boolean | null;
  /** not used */
  user?: string | null;
  /** not used */
  metadata?: Record<string, string> | null;
  /** not used */
  safety_identifier?: string | null;
  /** not used */
  prompt_cache_key?: string | null;
  service_tier?: string | null;
  n?: number | null;
  seed?: number | null;
  stop?: string | readonly string[] | null;
  stream_options?: StreamOptions | null;
  max_tokens?: number | null;
  /** only 0; repetition_penalty discounts repetitions */
  frequency_penalty?: number | null;
  /** only 0 */
  presence_penalty?: number | null;
  /** only empty */
  logit_bias?: object | null;
  messages: readonly Message[];
  max_completion_tokens?: number | null;
  logprobs?: boolean | null;
  top_logprobs?: number | null;
  response_format?: ResponseFormat | null;
  tools?: readonly Tool[] | null;
  tool_choice?: string | ToolChoice | null;
  parallel_tool_calls?: boolean | null;
  modalities?: readonly string[] | null;
}

/** Texts that are to be gone on with. */
export interface Completion {
  /** the model's name; the server's first if not given */
  model?: string | null;
  /** 0 takes the likeliest token */
  temperature?: number | null;
  top_p?: number | null;
  top_k?: number | null;
  min_p?: number | null;
  repetition_penalty?: number | null;
  stream?: boolean | null;
  /** nothing is stored: true is refused */
  store?: boolean | null;
  /** not used */
  user?: string | null;
  /** not used */
  metadata?: Record<string, string> | null;
  /** not used */
  safety_identifier?: string | null;
  /** not used */
  prompt_cache_key?: string | null;
  service_tier?: string | null;
  n?: number | null;
  seed?: number | null;
  stop?: string | readonly string[] | null;
  stream_options?: StreamOptions | null;
  max_tokens?: number | null;
  /** only 0; repetition_penalty discounts repetitions */
  frequency_penalty?: number | null;
  /** only 0 */
  presence_penalty?: number | null;
  /** only empty */
  logit_bias?: object | null;
  prompt: string | readonly string[] | readonly number[] | readonly (readonly number[])[];
  logprobs?: number | null;
  echo?: boolean | null;
  suffix?: string | null;
  /** only the value of n */
  best_of?: number | null;
}

/** Texts of which vectors are to be made. */
export interface Embedding {
  input: string | readonly string[];
  /** the model's name; the server's first if not given */
  model?: string | null;
  encoding_format?: "float" | "base64" | null;
  /** only what the model's vectors have */
  dimensions?: number | null;
  /** not used */
  user?: string | null;
}

/** Which tools are to be called. */
export interface FlatChoice {
  type: "none" | "auto" | "required" | "function";
  name?: string | null;
}

/** A tool on offer, as the newer route has it. */
export interface FlatTool {
  name: string;
  description?: string | null;
  parameters?: object | null;
  strict?: boolean | null;
  type: "function";
}

/** A function on offer. */
export interface Function {
  name: string;
  description?: string | null;
  parameters?: object | null;
  strict?: boolean | null;
}

/** A message, a call, or what came of one. */
export interface Item {
  type?: "message" | "function_call" | "function_call_output";
  role?: "system" | "developer" | "user" | "assistant" | null;
  content?: string | readonly Part[] | null;
  id?: string | null;
  status?: string | null;
  phase?: string | null;
  call_id?: string | null;
  name?: string | null;
  arguments?: string | null;
  output?: string | readonly Part[] | null;
}

/** A JSON schema with a name. */
export interface JsonSchema {
  name: string;
  description?: string | null;
  schema: object;
  strict?: boolean | null;
}

/** One message of a conversation; `developer` is what `system` was called before. */
export interface Message {
  role: "system" | "developer" | "user" | "assistant" | "tool";
  content?: string | readonly Part[] | null;
  name?: string | null;
  tool_calls?: readonly ToolCall[] | null;
  tool_call_id?: string | null;
  reasoning_content?: string | null;
  refusal?: string | null;
  annotations?: readonly unknown[] | null;
  audio?: null;
  function_call?: null;
}

/** A function by name. */
export interface Named {
  name: string;
}

/** A piece of a message. */
export interface Part {
  type: string;
  text: string;
  annotations?: readonly unknown[] | null;
  logprobs?: readonly unknown[] | null;
}

/** Texts to be put into order by how close they are to a query. */
export interface Ranking {
  query: string;
  documents: readonly string[];
  /** how many to return; all if not given */
  top_n?: number | null;
  /** return the texts too */
  return_documents?: boolean;
  model?: string | null;
  truncate?: boolean;
}

/** What is to be answered, by the newer route; nothing is kept from one request to the next. */
export interface Respond {
  /** the model's name; the server's first if not given */
  model?: string | null;
  /** 0 takes the likeliest token */
  temperature?: number | null;
  top_p?: number | null;
  top_k?: number | null;
  min_p?: number | null;
  repetition_penalty?: number | null;
  stream?: boolean | null;
  /** nothing is stored: true is refused */
  store?: boolean | null;
  /** not used */
  user?: string | null;
  /** not used */
  metadata?: Record<string, string> | null;
  /** not used */
  safety_identifier?: string | null;
  /** not used */
  prompt_cache_key?: string | null;
  service_tier?: string | null;
  input: string | readonly Item[];
  instructions?: string | null;
  max_output_tokens?: number | null;
  text?: TextOptions | null;
  tools?: readonly FlatTool[] | null;
  tool_choice?: string | FlatChoice | null;
  parallel_tool_calls?: boolean | null;
  /** nothing is stored: send the whole conversation */
  previous_response_id?: string | null;
  /** only disabled */
  truncation?: string | null;
  /** only false */
  background?: boolean | null;
  /** only 0 */
  top_logprobs?: number | null;
  /** only empty: there is no more */
  include?: readonly string[] | null;
  /** only empty */
  reasoning?: object | null;
  /** not supported */
  max_tool_calls?: number | null;
  /** nothing is stored: send the whole conversation */
  conversation?: unknown;
  stream_options?: object | null;
}

/** What an answer looks like. */
export interface ResponseFormat {
  type: "text" | "json_object" | "json_schema";
  json_schema?: JsonSchema | null;
}

/** Pairs of texts. */
export interface Similar {
  pairs: readonly (readonly [string, string])[];
  model?: string | null;
  truncate?: boolean;
}

/** What a stream tells besides. */
export interface StreamOptions {
  include_usage?: boolean;
  include_obfuscation?: false | null;
}

/** What an answer looks like. */
export interface TextFormat {
  type: "text" | "json_object" | "json_schema";
  name?: string | null;
  description?: string | null;
  schema?: object | null;
  strict?: boolean | null;
}

/** How a text is to be. */
export interface TextOptions {
  format?: TextFormat | null;
  verbosity?: "medium" | null;
}

/** A tool on offer. */
export interface Tool {
  type: "function";
  function: Function;
}

/** A call of a tool in a message of the assistant. */
export interface ToolCall {
  id: string;
  type?: "function";
  function: CalledFunction;
}

/** Which tools are to be called. */
export interface ToolChoice {
  type: "none" | "auto" | "required" | "function";
  function?: Named | null;
}

/** Bodies by the route that takes them. */
export interface Bodies {
  "/v1/chat/completions": Chat;
  "/v1/completions": Completion;
  "/v1/responses": Respond;
  "/v1/embeddings": Embedding;
  "/v1/classify": Asking;
  "/v1/tag": Asking;
  "/v1/answer": Asking;
  "/v1/translate": Asking;
  "/v1/summarize": Asking;
  "/v1/predict": Asking;
  "/v1/similarity": Similar;
  "/v1/rerank": Ranking;
}
