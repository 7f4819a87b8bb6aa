/// What is wrong, and what to do.
public enum ModelError: Error, CustomStringConvertible {
    /// Files that are missing or damaged.
    case bundle(String)
    /// Tokens or numbers are not those of the model where it was exported.
    case parity(String)
    /// The device lacks memory.
    case memory(String)

    public var description: String {
        switch self {
        case .bundle(let reason): "\(reason)\nhint: export the model again"
        case .parity(let reason): "\(reason)\nhint: this device must not run this model"
        case .memory(let reason): "\(reason)\nhint: close other apps, or take a smaller model"
        }
    }
}
