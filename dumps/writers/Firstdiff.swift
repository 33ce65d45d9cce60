// Record what an engine computes as a firstdiff trace. Foundation and this file alone.
//
//     Firstdiff.open(nil, engine: "my-engine")                     // once; nil: the folder that $FIRSTDIFF_DUMP names
//     Firstdiff.step(tokens, firstPosition: position)              // at the top of each forward pass
//     Firstdiff.put("Qcur", layer: layer, q, shape: [t, h, d])     // after each value; no layer outside the blocks
//     Firstdiff.close()                                            // at the end
//
// Without a folder every call does nothing, so that they can stay in the code. Arrays are row-major, of Float, Double,
// Float16 (Apple silicon) or integers; for bfloat16 see `put(bits:)`. Each step is written whole and renamed into place
// when the next one begins: a crash loses the step in hand and nothing before it. What goes wrong is said on stderr
// and never stops the engine; after an error of the disk nothing more is recorded. Call from one thread at a time.

import Foundation

enum Firstdiff {
    /// The step in hand.
    private struct Step {
        var tokens: [Int]
        var positions: [Int]
        var header: [String]
        var keys: Set<String> = []
        var data: FileHandle
        var bytes = 0
    }

    private nonisolated(unsafe) static var folder: URL?
    private nonisolated(unsafe) static var engine: [String] = []
    private nonisolated(unsafe) static var layouts: [String] = []
    private nonisolated(unsafe) static var convention = "firstdiff"
    private nonisolated(unsafe) static var steps: [String] = []
    private nonisolated(unsafe) static var now: Step?

    /// Begin a trace; an earlier one in the folder is removed. nil: the folder in $FIRSTDIFF_DUMP, if it is set.
    static func open(_ path: String?, engine name: String) {
        guard let path = path ?? ProcessInfo.processInfo.environment["FIRSTDIFF_DUMP"], !path.isEmpty else { return }
        let begun = URL(fileURLWithPath: path, isDirectory: true)
        (folder, engine, layouts, convention, steps, now) = (begun, ["\"name\": " + quote(name)], [], "firstdiff", [], nil)
        guarded {
            try FileManager.default.createDirectory(at: begun, withIntermediateDirectories: true)
            for file in try FileManager.default.contentsOfDirectory(atPath: path)
            where file == "trace.json" || (file.hasPrefix("step-") && file.hasSuffix(".safetensors")) {
                try FileManager.default.removeItem(at: begun.appendingPathComponent(file))
            }
            try manifest(complete: false)
        }
    }

    /// Say more of the engine: about("arithmetic", "f32"); also "version" and "backend".
    static func about(_ key: String, _ text: String) { engine.append(quote(key) + ": " + quote(text)) }

    /// Say whose names the tensors have, if not firstdiff's: "llama.cpp" or "hf".
    static func names(_ whose: String) { convention = whose }

    /// Say the axes of a point, outermost first, if they are not firstdiff's.
    static func layout(_ point: String, _ axes: [String]) {
        layouts.append(quote(point) + ": [" + axes.map(quote).joined(separator: ", ") + "]")
    }

    /// Begin a forward pass over tokens at consecutive positions; what the pass before it recorded is written.
    static func step<T: BinaryInteger>(_ tokens: [T], firstPosition: Int) {
        guarded {
            try endStep()
            let path = file("step-\(number(steps.count)).data.safetensors.tmp")
            try Data().write(to: path)
            let ids = tokens.map { Int($0) }, positions = Array(firstPosition..<firstPosition + tokens.count)
            let said = "\"__metadata__\":{\"tokens\":\"\(ids)\",\"positions\":\"\(positions)\"}"
            now = Step(tokens: ids, positions: positions, header: [said], data: try FileHandle(forUpdating: path))
        }
    }

    /// Record an array of floats or integers.
    static func put<T>(_ point: String, layer: Int? = nil, _ values: [T], shape: [Int]) {
        let dtypes = ["Double": "F64", "Float": "F32", "Float16": "F16", "Int": "I64", "Int64": "I64", "Int32": "I32",
                      "Int16": "I16", "Int8": "I8", "UInt8": "U8"]
        guard now != nil else { return }
        guard let dtype = dtypes["\(T.self)"] else { return say("\(point): an array of \(T.self) is not recorded") }
        record(point, layer, dtype, values.withUnsafeBytes { Data($0) }, count: values.count, shape)
    }

    /// Record 16-bit floats by their bits: dtype "F16" or "BF16".
    static func put(_ point: String, layer: Int? = nil, bits: [UInt16], dtype: String, shape: [Int]) {
        record(point, layer, dtype, bits.withUnsafeBytes { Data($0) }, count: bits.count, shape)
    }

    /// Write the last step, and mark the trace complete.
    static func close() {
        guarded {
            try endStep()
            try manifest(complete: true)
        }
        folder = nil
    }

    private static func record(
        _ point: String, _ layer: Int?, _ dtype: String, _ raw: Data, count: Int, _ shape: [Int]
    ) {
        guard folder != nil, var step = now else { return }
        let refused = CharacterSet(charactersIn: " "..."~").inverted.union(CharacterSet(charactersIn: "\"/\\@"))
        let plain = point.components(separatedBy: refused).joined(separator: "_")
        let key = layer.map { "\(plain)-\($0)" } ?? plain
        guard shape.reduce(1, *) == count else {
            return say("\(key): \(count) numbers are not of shape \(shape): not recorded")
        }
        guard step.keys.insert(key).inserted else { return say("\(key) is put twice in a step: the first is kept") }
        let end = step.bytes + raw.count
        step.header.append(
            "\(quote(key)):{\"dtype\":\"\(dtype)\",\"shape\":\(shape),\"data_offsets\":[\(step.bytes),\(end)]}")
        step.bytes = end
        now = step
        guarded { try step.data.write(contentsOf: raw) }
    }

    /// Write the step in hand: the header that safetensors wants first, then what was put.
    private static func endStep() throws {
        guard let step = now else { return }
        now = nil
        let name = "step-\(number(steps.count))"
        let data = file("\(name).data.safetensors.tmp"), temporary = file("\(name).safetensors.tmp")
        var header = Data("{\(step.header.joined(separator: ","))}".utf8)
        header.append(Data(repeating: 32, count: (8 - header.count % 8) % 8))
        try Data((0..<8).map { UInt8(header.count >> (8 * $0) & 255) }).write(to: temporary)
        let out = try FileHandle(forWritingTo: temporary)
        try out.seekToEnd()
        try out.write(contentsOf: header)
        try step.data.seek(toOffset: 0)
        while let block = try step.data.read(upToCount: 1 << 20), !block.isEmpty { try out.write(contentsOf: block) }
        try out.close()
        try step.data.close()
        try FileManager.default.removeItem(at: data)
        try place(temporary, file("\(name).safetensors"))
        steps.append("\n    {\"tokens\": \(step.tokens), \"positions\": \(step.positions)}")
        try manifest(complete: false)
    }

    private static func manifest(complete: Bool) throws {
        let text = """
            {
              "format": "firstdiff-trace",
              "version": 1,
              "engine": {\(engine.joined(separator: ", "))},
              "complete": \(complete),
              "names": \(quote(convention)),
              "layouts": {\(layouts.joined(separator: ", "))},
              "steps": [\(steps.joined(separator: ","))
              ]
            }

            """
        try Data(text.utf8).write(to: file("trace.json.tmp"))
        try place(file("trace.json.tmp"), file("trace.json"))
    }

    /// Do something with the trace, if there is one; an error ends it.
    private static func guarded(_ act: () throws -> Void) {
        guard let path = folder?.path else { return }
        do { try act() } catch {
            say("\(path): \(error): nothing more is recorded")
            (folder, now) = (nil, nil)
        }
    }

    private static func place(_ from: URL, _ to: URL) throws {
        guard rename(from.path, to.path) == 0 else { throw CocoaError(.fileWriteUnknown) }
    }

    private static func say(_ text: String) { FileHandle.standardError.write(Data("firstdiff: \(text)\n".utf8)) }

    private static func file(_ name: String) -> URL { folder!.appendingPathComponent(name) }

    private static func number(_ step: Int) -> String {
        String(repeating: "0", count: max(0, 3 - String(step).count)) + String(step)
    }

    private static func quote(_ text: String) -> String {
        var escaped = ""
        for c in text.unicodeScalars {
            if c.value < 32 {
                escaped += "\\u00" + (c.value < 16 ? "0" : "") + String(c.value, radix: 16)
            } else {
                escaped += (c == "\"" || c == "\\" ? "\\" : "") + String(c)
            }
        }
        return "\"" + escaped + "\""
    }
}
