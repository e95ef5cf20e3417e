//! The viewers' process. A line on its input asks what was seen since the last one; it answers with one.

use std::io::{BufRead, BufReader, Write, stdin, stdout};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use crate::base::error::{Context, Error, Kind, Result};
use crate::sink::video::view::{Seen, Viewers as Watching};

/// Is so many viewers of `uri` until its input ends; the first reads the times in what it sees, where `reads`.
///
/// # Errors
/// When they cannot be made, or nobody listens.
pub fn watch(uri: &str, count: usize, reads: bool) -> Result<()> {
    let viewers = Watching::start(uri, count, reads)?;
    for line in stdin().lines() {
        line.context(Kind::Io, || "the input cannot be read")?;
        let Seen { pictures, ages } = viewers.take();
        let told = writeln!(stdout(), "{}", json!({"pictures": pictures, "ages": ages}));
        told.and_then(|()| stdout().flush()).context(Kind::Io, || "the output cannot be written")?;
    }
    Ok(())
}

/// This program as viewers; they leave when it is dropped.
pub struct Viewers {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Viewers {
    /// Begins to watch; as `watch`.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn start(uri: &str, count: usize, reads: bool) -> Result<Self> {
        let failed = || "the viewers' process cannot be started";
        let program = std::env::current_exe().context(Kind::Io, failed)?;
        let mut command = Command::new(program);
        command.args(["bench", "outputs", "--watch", uri, &count.to_string(), &reads.to_string()]);
        // In a process group of its own: Ctrl-C is for this process, which then ends the other.
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0).spawn();
        let mut child = child.context(Kind::Io, failed)?;
        let output = child.stdout.take().ok_or_else(|| Error::new(Kind::Internal, failed()))?;
        Ok(Self { child, output: BufReader::new(output) })
    }

    /// What was seen since it was last asked for.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn take(&mut self) -> Result<Seen> {
        let ended = || "the viewers' process has ended";
        let mut line = String::new();
        if let Some(input) = &mut self.child.stdin {
            input.write_all(b"\n").and_then(|()| input.flush()).context(Kind::Internal, ended)?;
        }
        self.output.read_line(&mut line).context(Kind::Internal, ended)?;
        let told: Value = serde_json::from_str(&line).context(Kind::Internal, ended)?;
        let numbers = |key: &str| told[key].as_array().into_iter().flatten().filter_map(Value::as_u64).collect::<Vec<u64>>();
        let ages = numbers("ages").into_iter().filter_map(|age| u32::try_from(age).ok()).collect();
        Ok(Seen { pictures: numbers("pictures"), ages })
    }
}

impl Drop for Viewers {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
