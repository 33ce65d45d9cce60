// Records three small steps with firstdiff.rs: what test_writers.py expects to read back.
//
// Usage: writes [FOLDER] [kill]. Without a folder $FIRSTDIFF_DUMP decides. "kill": the process kills itself in the
// middle of step 2.
mod firstdiff;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let steps: [(&[i32], usize); 3] = [(&[1, 29896, 2], 0), (&[13], 3), (&[7], 4)];
    firstdiff::open(arguments.first().map(String::as_str), "an \"odd\" \\ engine\n\u{1}");
    firstdiff::about("arithmetic", "f32");
    firstdiff::layout("Qcur", &["head", "token", "head_dim"]);
    for (index, (tokens, position)) in steps.iter().enumerate() {
        let t = tokens.len();
        let values: Vec<f32> = (0..8 * t).map(|i| (i * 7 % 31) as f32 * 0.125 - 1.5 + index as f32).collect();
        let doubles: Vec<f64> = (0..2 * t).map(|i| 1.0 / (3 + i + index) as f64).collect();
        firstdiff::step(tokens, *position);
        firstdiff::put("embd", None, &values[..4 * t], &[t, 4]);
        firstdiff::put("Qcur", Some(0), &values, &[2, t, 4]);
        firstdiff::put_bits("Kcur", Some(11), "F16", [0x3c00, 0xc000, 0x0001, 0x7bff].into_iter(), &[1, 2, 2]);
        if index == 2 && arguments.get(1).map(String::as_str) == Some("kill") {
            let pid = std::process::id().to_string();
            let _ = std::process::Command::new("kill").args(["-9", &pid]).status();
        }
        firstdiff::put_bits("Vcur", Some(11), "BF16", [0x3f80, 0xc000, 0x0001, 0x7f7f].into_iter(), &[4]);
        firstdiff::put("ids/of\"it", None, tokens, &[t]);
        firstdiff::put("scores", Some(3), &doubles, &[t, 2]);
        firstdiff::put("embd", None, &doubles, &[t, 2]); // twice: the first is kept
    }
    firstdiff::close();
}
