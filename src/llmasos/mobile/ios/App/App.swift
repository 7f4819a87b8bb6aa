import LocalModel
import SwiftUI

@main
struct ModelApp: App {
    var body: some Scene {
        WindowGroup { ModelView() }
    }
}

/// One text in, the answer out.
struct ModelView: View {
    @State private var model: LocalModel?
    @State private var texts = ["", ""]
    @State private var answer = ""
    @State private var state = "Reading the model…"

    var body: some View {
        Form {
            if let model {
                TextField("Text", text: $texts[0], axis: .vertical)
                if model.tag == "sentence-similarity" {
                    TextField("Another text", text: $texts[1], axis: .vertical)
                }
                Button("Answer") { ask(model) }
                Text(answer).font(.title3)
            }
            Text(state).font(.footnote)
        }
        .task { await open() }
    }

    private func open() async {
        do {
            let opened = try await Task.detached(priority: .userInitiated) { try Device.open() }.value
            model = opened.model
            state = "Golden rows agree: at most \(opened.apart) of the largest number apart."
        } catch {
            state = "\(error)"
        }
    }

    private func ask(_ model: LocalModel) {
        let asked = texts
        Task.detached(priority: .userInitiated) {
            let said: String
            do {
                said = model.tag == "sentence-similarity"
                    ? String(format: "%.3f", try model.similarity(asked[0], asked[1]))
                    : try model.classify(asked[0])
                        .map { "\($0.name)  \(String(format: "%.1f", 100 * $0.score)) %" }.joined(separator: "\n")
            } catch {
                said = "\(error)"
            }
            await MainActor.run { answer = said }
        }
    }
}
