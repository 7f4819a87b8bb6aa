/** The model that this app carries, on this device: ExecuTorch's program and Hugging Face's tokenizer. */

import { Asset } from "expo-asset";
import * as Device from "expo-device";
import { File, Paths } from "expo-file-system";
import { loadModel, nlp, tensor } from "react-native-executorch";

import { type Files, LocalModel, type Program } from "./model";

const FILES: Files = {
  manifest: require("../llmasos.json"),
  certificate: require("../certificate.json"),
  golden: require("../golden.json"),
  reader: require("../reader.json"),
};

/**
 * Open it; golden rows run at every start.
 *
 * @throws ModelError: this device lacks the memory, or gives other tokens or numbers.
 */
export async function openModel(): Promise<LocalModel> {
  const asset = await Asset.fromModule(require("../model.pte")).downloadAsync();
  if (asset.localUri === null) throw new Error("the app lacks model.pte");
  const path = onDisk(asset.localUri);
  const tokenizer = nlp.loadTokenizer(written("tokenizer.json", JSON.stringify(require("../tokenizer.json"))));
  return new LocalModel(
    FILES,
    Device.totalMemory ?? Infinity,
    { ids: (text) => Array.from(tokenizer.encode(text)) },
    () => opened(path),
  );
}

function opened(path: string): Program {
  const model = loadModel(path);
  // one row of a task always gives as many numbers
  const width = [FILES.golden.examples[0]?.outputs ?? []].flat(9).length / (FILES.golden.examples[0]?.ids.length ?? 1);
  const out = tensor("float32", [1, width]);
  return {
    run(inputs) {
      const given = inputs.map((ids) => tensor("int64", [1, ids.length], BigInt64Array.from(ids, BigInt)));
      try {
        model.execute("forward", given, [out]);
        return Array.from(out.getData(new Float32Array(width)));
      } finally {
        for (const one of given) one.dispose();
      }
    },
    close() {
      out.dispose();
      model.dispose();
    },
  };
}

function written(name: string, content: string): string {
  const file = new File(Paths.cache, name);
  file.write(content);
  return onDisk(file.uri);
}

/** A file's address as a path, which native code takes. */
function onDisk(uri: string): string {
  return decodeURIComponent(uri.replace(/^file:\/\//, ""));
}
