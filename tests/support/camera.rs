//! A camera in a process of its own, which can be stopped, killed and started anew, as real ones are.
#![allow(dead_code, reason = "each area of the tests uses a part of it")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::daemon::PALISADE;

/// A camera on loopback; its process is killed when dropped, and ends by itself where the test is killed.
pub struct Camera {
    footage: [String; 2],
    login: Option<(String, String)>,
    digest: bool,
    certificate: Option<PathBuf>,
    port: u16,
    child: Option<Child>,
}

impl Camera {
    /// Shows a clip over and over, to each viewer from its start on.
    pub fn clip(path: &Path) -> Self {
        Self::off("--clip", path.to_str().unwrap()).on()
    }

    /// Shows what a `gst-launch` line makes, whose payloader is named `pay0`.
    pub fn launch(line: &str) -> Self {
        Self::off("--launch", line).on()
    }

    /// The same, switched off until `on`, for options before that.
    pub fn off(what: &str, footage: &str) -> Self {
        Self { footage: [what.to_owned(), footage.to_owned()], login: None, digest: false, certificate: None, port: 0, child: None }
    }

    /// Only who knows the password may watch; it is asked for by the basic scheme.
    pub fn basic(mut self, user: &str, password: &str) -> Self {
        self.login = Some((user.to_owned(), password.to_owned()));
        self
    }

    /// The same by the digest scheme.
    pub fn digest(mut self, user: &str, password: &str) -> Self {
        self.digest = true;
        self.basic(user, password)
    }

    /// Encrypted with the certificate and key of a PEM file.
    pub fn certificate(mut self, pem: &Path) -> Self {
        self.certificate = Some(pem.to_owned());
        self
    }

    /// On this port instead of any.
    pub fn at_port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// Switches it on.
    pub fn on(mut self) -> Self {
        self.start();
        self
    }

    /// The address to play, without credentials.
    pub fn uri(&self) -> String {
        format!("rtsp{}://127.0.0.1:{}/cam", if self.certificate.is_some() { "s" } else { "" }, self.port)
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process.
    pub fn id(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// It stands still, and its connections stay.
    pub fn stop_signal(&self) {
        self.signal("STOP");
    }

    /// It goes on after `stop_signal`.
    pub fn cont(&self) {
        self.signal("CONT");
    }

    /// Kills it without a word to anybody.
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Starts it anew on the same port.
    pub fn restart(&mut self) {
        self.kill9();
        self.start();
    }

    /// The same with other elements.
    pub fn restart_with(&mut self, line: &str) {
        self.footage = ["--launch".to_owned(), line.to_owned()];
        self.restart();
    }

    fn start(&mut self) {
        let mut command = Command::new(PALISADE);
        command.arg("serve").args(&self.footage).args(["--port", &self.port.to_string(), "--until-eof"]);
        if let Some((user, password)) = &self.login {
            command.args(["--user", user]).env("PALISADE_SERVE_PASSWORD", password);
        }
        if self.digest {
            command.arg("--digest");
        }
        if let Some(pem) = &self.certificate {
            command.arg("--certificate").arg(pem);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        self.child = Some(child);
        let port = line.trim_end().strip_prefix("listening ").unwrap_or_else(|| panic!("the camera said {line:?}"));
        self.port = port.parse().unwrap();
    }

    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([&format!("-{name}"), &self.id().to_string()]).status().unwrap().success());
    }
}

impl Drop for Camera {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}
