//! The cameras' process.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::app::serve::LISTENING;
use crate::base::error::{Context, Error, Kind, Result};
use crate::base::process;
use crate::base::thread::{self, Thread};

/// This program as `palisade serve`; ends when dropped, and by itself where this process is killed.
pub struct Server {
    child: Child,
    port: u16,
    /// Hands on what it says.
    log: Option<Thread>,
}

impl Server {
    /// Shows a clip to whoever comes, or with `--launch` what elements make.
    ///
    /// # Errors
    /// When there is no such process, or it has nothing to show; the sentence is then its own.
    pub fn start(what: &str, footage: impl AsRef<OsStr>) -> Result<Self> {
        let failed = || "the cameras' process cannot be started";
        let program = std::env::current_exe().context(Kind::Io, failed)?;
        let mut command = Command::new(program);
        command.arg("serve").arg(what).arg(footage).args(["--port", "0", "--until-eof"]);
        // In a process group of its own: Ctrl-C is for this process, which then ends the other.
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).spawn();
        let mut server = Self { child: child.context(Kind::Io, failed)?, port: 0, log: None };
        let mut line = String::new();
        if let Some(output) = server.child.stdout.take() {
            BufReader::new(output).read_line(&mut line).context(Kind::Io, failed)?;
        }
        match line.trim_end().strip_prefix(LISTENING).and_then(|port| port.parse().ok()) {
            Some(port) => server.port = port,
            None => return Err(server.complaint()),
        }
        if let Some(mut said) = server.child.stderr.take() {
            server.log = Some(thread::spawn("bench-server", move || {
                std::io::copy(&mut said, &mut std::io::stderr()).ok();
            })?);
        }
        Ok(server)
    }

    /// The address of every camera.
    pub fn uri(&self) -> String {
        format!("rtsp://127.0.0.1:{}/cam", self.port)
    }

    /// The processor time that it has taken.
    pub fn cpu_time(&self) -> Option<Duration> {
        process::cpu_time(Some(self.child.id()))
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// When it does not.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(Error::new(Kind::Internal, format!("the cameras' process ended with {status}"))),
            Err(error) => Err(Error::new(Kind::Internal, "the cameras' process is lost").because(error)),
        }
    }

    /// Why it did not come to listen.
    fn complaint(&mut self) -> Error {
        let mut said = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            stderr.read_to_string(&mut said).ok();
        }
        match said.trim().strip_prefix("palisade: ") {
            Some(sentence) => Error::new(Kind::Input, sentence),
            None => Error::new(Kind::Internal, format!("the cameras' process said nothing of a port, but {said:?}")),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
