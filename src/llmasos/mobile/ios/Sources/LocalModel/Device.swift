import CryptoKit
import ExecuTorch
import Foundation
#if os(iOS)
import os
#endif

/// The model that this package carries, on this device.
public enum Device {
    /// Open it. Golden rows run at the first start, and again after the model or the system has changed.
    public static func open() throws -> (model: LocalModel, apart: Double) {
        let model = try LocalModel(read: file, freeBytes: freeBytes()) { try ExecuTorchProgram(path("model.pte")) }
        let known = UserDefaults.standard
        let system = ProcessInfo.processInfo.operatingSystemVersionString
        let digest = SHA256.hash(data: try file("certificate.json") + Data(system.utf8))
        let here = "llmasos-" + digest.map { String(format: "%02x", $0) }.joined()
        if known.object(forKey: here) == nil {
            known.set(try model.verify(), forKey: here)
        }
        return (model, known.double(forKey: here))
    }

    private static func path(_ name: String) throws -> String {
        guard let found = Bundle.module.path(forResource: name, ofType: nil) else {
            throw ModelError.bundle("the app lacks \(name)")
        }
        return found
    }

    private static func file(_ name: String) throws -> Data {
        try Data(contentsOf: URL(fileURLWithPath: path(name)))
    }

    /// Return the memory that this app may still take.
    private static func freeBytes() -> Int {
        #if os(iOS)
        return os_proc_available_memory()
        #else
        return Int(ProcessInfo.processInfo.physicalMemory / 2)
        #endif
    }
}

/// ExecuTorch's program: one row in, its numbers out.
private final class ExecuTorchProgram: Program {
    private let module: Module

    init(_ path: String) throws {
        module = Module(filePath: path)
        try module.load("forward")
    }

    func run(_ inputs: [[Int]]) throws -> [Float] {
        let given = inputs.map { Tensor<Int64>($0.map(Int64.init), shape: [1, $0.count]) }
        let found: Tensor<Float> = try module.forward(given)
        return found.scalars()
    }
}
