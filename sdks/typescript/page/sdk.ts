/** The SDK as an export brings it: one file, with ONNX Runtime Web's own files beside it. */

import { bundledRuntime } from "../src/runtime.js";

bundledRuntime(new URL("./", import.meta.url).href);

export * from "../src/index.js";
