//! Record what an engine computes as a firstdiff trace. Rust's standard library and this file alone.
//!
//! ```ignore
//! mod firstdiff;
//! firstdiff::open(None, "my-engine");                     // once; None: the folder that $FIRSTDIFF_DUMP names
//! firstdiff::step(&tokens, first_position);               // at the top of each forward pass
//! firstdiff::put("Qcur", Some(layer), &q, &[t, h, d]);    // after each value; None outside the blocks
//! firstdiff::close();                                     // at the end
//! ```
//!
//! Without a folder every call does nothing, so that they can stay in the code. Each step is written whole and renamed
//! into place when the next one begins: a crash loses the step in hand and nothing before it. What goes wrong is said
//! on stderr and never stops the engine; after an error of the disk nothing more is recorded.
#![allow(dead_code)]
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

/// A number that can be recorded. For f16 and bf16, which std lacks, see [`put_bits`].
pub trait Number: Copy {
    const DTYPE: &'static str;
    fn write(self, out: &mut dyn Write) -> io::Result<()>;
}

macro_rules! number {
    ($($kind:ty => $name:literal),*) => {$(
        impl Number for $kind {
            const DTYPE: &'static str = $name;
            fn write(self, out: &mut dyn Write) -> io::Result<()> { out.write_all(&self.to_le_bytes()) }
        }
    )*};
}
number!(f64 => "F64", f32 => "F32", i64 => "I64", i32 => "I32", i16 => "I16", i8 => "I8", u8 => "U8");

struct Run {
    dir: PathBuf,
    engine: String,
    names: String,
    layouts: Vec<String>,
    steps: Vec<String>,
    step: Option<Step>,
}

/// The step in hand.
struct Step {
    tokens: String,
    positions: String,
    header: Vec<String>,
    keys: HashSet<String>,
    data: BufWriter<File>,
    bytes: usize,
}

static RUN: Mutex<Option<Run>> = Mutex::new(None);

fn run() -> MutexGuard<'static, Option<Run>> {
    RUN.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Do something with the run, if there is one; an error ends it.
fn guarded(act: impl FnOnce(&mut Run) -> io::Result<()>) {
    let mut held = run();
    if let Some(Err(error)) = held.as_mut().map(act) {
        let dir = held.take().map(|run| run.dir).unwrap_or_default();
        eprintln!("firstdiff: {}: {error}: nothing more is recorded", dir.display());
    }
}

/// Begin a trace; an earlier one in the folder is removed. None: the folder in `$FIRSTDIFF_DUMP`, if it is set.
pub fn open(dir: Option<&str>, engine: &str) {
    let folder = dir.map(PathBuf::from).or_else(|| std::env::var_os("FIRSTDIFF_DUMP").map(PathBuf::from));
    let Some(dir) = folder.filter(|dir| !dir.as_os_str().is_empty()) else { return };
    let engine = format!("\"name\": {}", quote(engine));
    *run() = Some(Run { dir, engine, names: quote("firstdiff"), layouts: vec![], steps: vec![], step: None });
    guarded(|run| {
        fs::create_dir_all(&run.dir)?;
        let _ = fs::remove_file(run.dir.join("trace.json"));
        let _ = (0..).try_for_each(|i| fs::remove_file(run.dir.join(format!("step-{i:03}.safetensors"))));
        run.manifest(false)
    });
}

/// Say more of the engine: `about("arithmetic", "f32")`; also `version` and `backend`.
pub fn about(key: &str, text: &str) {
    guarded(|run| Ok(run.engine.push_str(&format!(", {}: {}", quote(key), quote(text)))));
}

/// Say whose names the tensors have, if not firstdiff's: `llama.cpp` or `hf`.
pub fn names(whose: &str) {
    guarded(|run| Ok(run.names = quote(whose)));
}

/// Say the axes of a point, outermost first, if they are not firstdiff's.
pub fn layout(point: &str, axes: &[&str]) {
    let axes: Vec<String> = axes.iter().map(|axis| quote(axis)).collect();
    guarded(|run| Ok(run.layouts.push(format!("{}: [{}]", quote(point), axes.join(", ")))));
}

/// Begin a forward pass over tokens at consecutive positions; what the pass before it recorded is written.
pub fn step<T: Copy + std::fmt::Display>(tokens: &[T], first_position: usize) {
    guarded(|run| {
        run.end_step()?;
        let path = run.dir.join(format!("step-{:03}.data.safetensors.tmp", run.steps.len()));
        let data = BufWriter::new(File::options().read(true).write(true).create(true).truncate(true).open(path)?);
        let (tokens, positions) = (list(tokens), list(&Vec::from_iter(first_position..first_position + tokens.len())));
        let said = format!("\"__metadata__\":{{\"tokens\":\"{tokens}\",\"positions\":\"{positions}\"}}");
        run.step = Some(Step { tokens, positions, header: vec![said], keys: HashSet::new(), data, bytes: 0 });
        Ok(())
    });
}

/// Record a tensor of f64, f32 or integers.
pub fn put<T: Number>(point: &str, layer: Option<usize>, data: &[T], shape: &[usize]) {
    let size = std::mem::size_of::<T>();
    record(point, layer, T::DTYPE, shape, data.len(), size, |out| data.iter().try_for_each(|x| x.write(out)));
}

/// Record a tensor of 16-bit floats, `"F16"` or `"BF16"`, by their bits: `k.iter().map(|x| x.to_bits())`.
pub fn put_bits(point: &str, layer: Option<usize>, dtype: &str, bits: impl Iterator<Item = u16>, shape: &[usize]) {
    let bits: Vec<u16> = if run().is_some() { bits.collect() } else { return };
    let write = |out: &mut dyn Write| bits.iter().try_for_each(|x| out.write_all(&x.to_le_bytes()));
    record(point, layer, dtype, shape, bits.len(), 2, write);
}

/// Write the last step, and mark the trace complete.
pub fn close() {
    guarded(|run| run.end_step().and_then(|()| run.manifest(true)));
    *run() = None;
}

fn record(
    point: &str, layer: Option<usize>, dtype: &str, shape: &[usize], count: usize, size: usize,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) {
    guarded(|run| {
        let Some(step) = &mut run.step else { return Ok(()) };
        let plain = point.replace(|c| !(' '..='~').contains(&c) || "\"/\\@".contains(c), "_");
        let key = layer.map_or(plain.clone(), |layer| format!("{plain}-{layer}"));
        if shape.iter().product::<usize>() != count {
            eprintln!("firstdiff: {key}: {count} numbers are not of shape {shape:?}: not recorded");
        } else if !step.keys.insert(key.clone()) {
            eprintln!("firstdiff: {key} is put twice in a step: the first is kept");
        } else {
            let (begin, end) = (step.bytes, step.bytes + count * size);
            let said = format!("\"dtype\":\"{dtype}\",\"shape\":{shape:?},\"data_offsets\":[{begin},{end}]");
            step.header.push(format!("{}:{{{said}}}", quote(&key)));
            step.bytes = end;
            write(&mut step.data)?;
        }
        Ok(())
    });
}

impl Run {
    /// Write the step in hand: the header that safetensors wants first, then what was put.
    fn end_step(&mut self) -> io::Result<()> {
        let Some(mut step) = self.step.take() else { return Ok(()) };
        let path = self.dir.join(format!("step-{:03}.safetensors", self.steps.len()));
        let mut header = format!("{{{}}}", step.header.join(","));
        header.push_str(&" ".repeat(header.len().wrapping_neg() % 8));
        step.data.flush()?;
        step.data.get_mut().seek(SeekFrom::Start(0))?;
        let mut file = File::create(path.with_extension("safetensors.tmp"))?;
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        io::copy(step.data.get_mut(), &mut file)?;
        fs::remove_file(path.with_extension("data.safetensors.tmp"))?;
        fs::rename(path.with_extension("safetensors.tmp"), &path)?;
        self.steps.push(format!("\n    {{\"tokens\": {}, \"positions\": {}}}", step.tokens, step.positions));
        self.manifest(false)
    }

    fn manifest(&self, complete: bool) -> io::Result<()> {
        let (engine, names) = (&self.engine, &self.names);
        let (layouts, steps) = (self.layouts.join(", "), self.steps.join(","));
        let text = format!(
            "{{\n  \"format\": \"firstdiff-trace\",\n  \"version\": 1,\n  \"engine\": {{{engine}}},\n  \"complete\": \
             {complete},\n  \"names\": {names},\n  \"layouts\": {{{layouts}}},\n  \"steps\": [{steps}\n  ]\n}}\n"
        );
        fs::write(self.dir.join("trace.json.tmp"), text)?;
        fs::rename(self.dir.join("trace.json.tmp"), self.dir.join("trace.json"))
    }
}

fn list<T: std::fmt::Display>(numbers: &[T]) -> String {
    format!("[{}]", numbers.iter().map(T::to_string).collect::<Vec<_>>().join(", "))
}

fn quote(text: &str) -> String {
    let escaped = |c: char| if c < ' ' { format!("\\u{:04x}", c as u32) } else { c.to_string() };
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").chars().map(escaped).collect::<String>())
}
