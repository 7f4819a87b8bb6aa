/** One text in, the answer out. */

import { useEffect, useState } from "react";
import { Button, ScrollView, StyleSheet, Text, TextInput } from "react-native";

import { openModel } from "./src/device";
import type { LocalModel } from "./src/model";

export default function App() {
  const [model, setModel] = useState<LocalModel>();
  const [state, setState] = useState("Reading the model…");
  const [one, setOne] = useState("");
  const [other, setOther] = useState("");
  const [answer, setAnswer] = useState("");

  useEffect(() => {
    let opened: LocalModel | undefined;
    let gone = false;
    openModel()
      .then((found) => {
        opened = found;
        if (gone) return found.close();
        setModel(found);
        setState(`Golden rows agree: at most ${found.apart.toExponential(1)} of the largest number apart.`);
      })
      .catch((error: unknown) => setState(String(error)));
    return () => {
      gone = true;
      opened?.close();
    };
  }, []);

  const ask = (opened: LocalModel) => {
    try {
      setAnswer(
        opened.tag === "sentence-similarity"
          ? opened.similarity(one, other).toFixed(3)
          : opened
              .classify(one)
              .map(({ name, score }) => `${name}  ${(100 * score).toFixed(1)} %`)
              .join("\n"),
      );
    } catch (error) {
      setState(String(error));
    }
  };

  return (
    <ScrollView contentContainerStyle={styles.page}>
      {model && (
        <>
          <TextInput multiline placeholder="Text" style={styles.input} value={one} onChangeText={setOne} />
          {model.tag === "sentence-similarity" && (
            <TextInput multiline placeholder="Another text" style={styles.input} value={other} onChangeText={setOther} />
          )}
          <Button title="Answer" onPress={() => ask(model)} />
          <Text style={styles.answer}>{answer}</Text>
        </>
      )}
      <Text>{state}</Text>
    </ScrollView>
  );
}

const styles = StyleSheet.create({
  page: { gap: 12, padding: 16, paddingTop: 64 },
  input: { borderColor: "#888", borderRadius: 6, borderWidth: 1, minHeight: 64, padding: 8 },
  answer: { fontSize: 18 },
});
