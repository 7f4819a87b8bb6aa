import XCTest

@testable import LocalModel

/// `swift test` on a Mac runs what a phone does at its first start.
final class GoldenTests: XCTestCase {
    func testThisMachineGivesTheGoldenNumbers() throws {
        _ = try Device.open().model.verify()
    }
}
