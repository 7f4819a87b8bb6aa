// swift-tools-version:5.9
import PackageDescription

let package = Package(
    name: "LocalModel",
    platforms: [.iOS(.v17), .macOS(.v14)],
    products: [.library(name: "LocalModel", targets: ["LocalModel"])],
    dependencies: [
        .package(url: "https://github.com/pytorch/executorch.git", branch: "swiftpm-@EXECUTORCH@")
    ],
    targets: [
        .target(
            name: "LocalModel",
            dependencies: ["executorch", "backend_xnnpack", "kernels_optimized", "kernels_quantized"].map {
                .product(name: $0, package: "executorch")
            },
            path: ".",
            exclude: ["App", "Tests", "README.md", "project.yml"],
            sources: ["Sources/LocalModel"],
            resources: [
                "model.pte", "llmasos.json", "certificate.json", "golden.json", "tokenizer.json", "reader.json",
            ].map { .copy($0) },
            // backends and kernels announce themselves, so that all of them must be linked
            linkerSettings: [.unsafeFlags(["-Wl,-all_load"])]
        ),
        .testTarget(name: "LocalModelTests", dependencies: ["LocalModel"], path: "Tests/LocalModelTests"),
    ]
)
