// swift-tools-version:5.9
import PackageDescription

let package = Package(
    name: "Chat",
    platforms: [.iOS(.v16), .macOS(.v13)],
    products: [.library(name: "Chat", targets: ["Chat"])],
    dependencies: [
        .package(url: "https://github.com/microsoft/onnxruntime-swift-package-manager", from: "1.20.0"),
        .package(url: "https://github.com/huggingface/swift-transformers", from: "1.0.0"),
    ],
    targets: [
        .target(
            name: "Chat",
            dependencies: [
                .product(name: "onnxruntime", package: "onnxruntime-swift-package-manager"),
                .product(name: "Tokenizers", package: "swift-transformers"),
            ],
            path: ".",
            exclude: ["Package.swift"],
            sources: ["Chat.swift", "Decoder.swift", "Sampler.swift"]
        )
    ]
)
