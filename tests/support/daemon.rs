//! The real binary as a child process, with a service manager's socket to listen on.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::broker::eventually;

/// The binary under test.
pub const PALISADE: &str = env!("CARGO_BIN_EXE_palisade");

/// A path in the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A running `palisade run`. Killed when dropped.
pub struct Daemon {
    child: Child,
    file: PathBuf,
    log: PathBuf,
    socket: UnixDatagram,
    told: Vec<String>,
}

impl Daemon {
    /// Starts it on a configuration, written into `folder`.
    pub fn start(folder: &Path, config: &str) -> Self {
        Self::start_with(folder, config, &[])
    }

    /// The same, where no file may grow beyond so many blocks of 512 bytes; told so as it writes, not killed.
    pub fn start_cramped(folder: &Path, config: &str, blocks: u32) -> Self {
        let mut command = Command::new("sh");
        let script = format!("trap '' XFSZ; ulimit -S -f {blocks}; exec \"$0\" \"$@\"");
        command.args(["-c", &script, PALISADE]);
        Self::spawn(command, folder, config, &[])
    }

    /// The same with other variables in its environment.
    pub fn start_with(folder: &Path, config: &str, variables: &[(&str, &str)]) -> Self {
        Self::spawn(Command::new(PALISADE), folder, config, variables)
    }

    fn spawn(mut command: Command, folder: &Path, config: &str, variables: &[(&str, &str)]) -> Self {
        let file = folder.join("palisade.toml");
        fs::write(&file, config).unwrap();
        let (log, socket) = (folder.join("daemon.log"), folder.join("notify"));
        fs::remove_file(&socket).ok();
        let listener = UnixDatagram::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let child = command
            .args(["run", "--config"])
            .arg(&file)
            .current_dir(folder)
            .env("NOTIFY_SOCKET", &socket)
            .env_remove("JOURNAL_STREAM")
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Self { child, file, log, socket: listener, told: Vec::new() }
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Whether it has told the service manager `line`, such as `READY=1`.
    pub fn has_told(&mut self, line: &str) -> bool {
        self.told().iter().any(|told| told == line)
    }

    /// All that it has told the service manager, in order.
    pub fn told(&mut self) -> &[String] {
        let mut buffer = [0; 4096];
        loop {
            match self.socket.recv(&mut buffer) {
                Ok(length) => self.told.extend(String::from_utf8_lossy(&buffer[..length]).lines().map(str::to_owned)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        &self.told
    }

    /// Writes another configuration and has it read; returns what the service manager was told of that, once it is over.
    pub fn reload(&mut self, config: &str) -> Vec<String> {
        let before = self.told().len();
        // At once, as an editor does.
        let part = self.file.with_extension("part");
        fs::write(&part, config).unwrap();
        fs::rename(&part, &self.file).unwrap();
        self.signal("HUP");
        eventually("the end of the reload", || {
            assert!(self.runs(), "the daemon ended");
            let told = &self.told()[before..];
            // The status line follows.
            told.iter().position(|told| told == "READY=1").is_some_and(|ready| told[ready..].iter().any(|told| told.starts_with("STATUS=")))
        });
        self.told()[before..].to_vec()
    }

    /// Waits until it has told the service manager that it is up.
    pub fn ready(&mut self) {
        eventually("READY=1", || {
            assert!(self.child.try_wait().unwrap().is_none(), "the daemon ended: {}", fs::read_to_string(&self.log).unwrap());
            self.has_told("READY=1")
        });
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by its name: `TERM`, `KILL`.
    pub fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap().success());
    }

    /// Waits for its end.
    pub fn wait(&mut self, most: Duration) -> ExitStatus {
        let deadline = Instant::now() + most;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the daemon still runs after {most:?}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        if std::thread::panicking() {
            eprintln!("the daemon's log:\n{}", fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

/// What `ffprobe` counts in a video file's first video stream: frames, and its duration in seconds.
pub fn ffprobe(path: &Path) -> (u64, f64) {
    let arguments = "-v error -select_streams v:0 -count_frames -show_entries stream=nb_read_frames:format=duration -of default=noprint_wrappers=1:nokey=1";
    let output =
        Command::new("ffprobe").args(arguments.split(' ')).arg(path).output().expect("ffprobe must be installed: apt install ffmpeg");
    assert!(output.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines = text.lines();
    (lines.next().unwrap().parse().unwrap(), lines.next().unwrap().parse().unwrap_or(0.0))
}
