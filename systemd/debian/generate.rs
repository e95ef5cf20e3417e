//! Writes the manual pages and the shell completions of the package into a folder. Pages of commands come from the command
//! line's own definition, and `palisade.toml(5)` is the reference file itself, so neither can say anything else than the
//! program does.

use std::error::Error;
use std::fs;
use std::io::Write;
use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;

#[allow(dead_code)]
#[path = "../../src/main.rs"]
mod program;

/// Every key with its default.
const REFERENCE: &str = include_str!("../../config/palisade.toml");

/// What the page of the program has beside its commands.
const MORE: &str = r#".SH "EXIT STATUS"
.TP
\fB0\fR
All went well.
.TP
\fB1\fR
Something failed; standard error says what.
.TP
\fB78\fR
The configuration is wrong. The service is not started anew on it.
.SH SIGNALS
.TP
\fBSIGTERM\fR, \fBSIGINT\fR
Finish the files, publish \fIoffline\fR and end. A second one ends at once.
.TP
\fBSIGHUP\fR
Read the configuration anew; cameras that have not changed go on untouched.
.SH FILES
.TP
\fI/etc/palisade/palisade.toml\fR
The configuration of the service; see \fBpalisade.toml\fR(5).
.TP
\fI/etc/palisade/credentials/\fR
Passwords, keys and tokens, a file each, for root alone. The service is handed copies of them at its start.
The file \fIhf_token\fR is the token for the model hub.
.TP
\fI/usr/share/palisade/demo.toml\fR
A configuration that works as it is: a small model on the sample clip, to be seen at http://127.0.0.1:8600/.
.TP
\fI/usr/share/palisade/dropins/\fR
What opens local cameras and graphics cards to the service; each says how.
.TP
\fI/var/lib/palisade/\fR, \fI/var/cache/palisade/\fR
What the service keeps: messages that wait for the broker, clips and pictures; downloaded models.
.SH "SEE ALSO"
\fBpalisade.toml\fR(5), \fBsystemctl\fR(1), \fBmosquitto_sub\fR(1)
"#;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args_os().nth(1).ok_or("usage: generate DIR")?;
    let folder = Path::new(&folder);
    let (man, completions) = (folder.join("man"), folder.join("completions"));
    for folder in [&man, &completions] {
        fs::create_dir_all(folder)?;
    }
    clap_mangen::generate_to(program::Cli::command(), &man)?;
    let mut page = fs::File::create(man.join("palisade.1"))?;
    Man::new(program::Cli::command().disable_help_subcommand(true)).render(&mut page)?;
    page.write_all(MORE.as_bytes())?;
    fs::write(man.join("palisade.toml.5"), reference())?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut program::Cli::command(), "palisade", &completions)?;
    }
    Ok(())
}

/// The reference file as a manual page.
fn reference() -> String {
    let version = env!("CARGO_PKG_VERSION");
    let text: String = REFERENCE.lines().map(|line| format!("\\&{}\n", line.replace('\\', "\\e").replace('-', "\\-"))).collect();
    format!(
        ".TH palisade.toml 5 \"\" \"palisade {version}\"\n.SH NAME\npalisade.toml \\- configuration of palisade\n.SH DESCRIPTION\n\
         Every key stands here with its default, or an example where there is none, and with what it does. \
         Durations are seconds. \\fBpalisade check \\-\\-config\\fR \\fIFILE\\fR reports every mistake at once.\n\
         .SH REFERENCE\n.nf\n{text}.fi\n.SH \"SEE ALSO\"\n\\fBpalisade\\fR(1)\n"
    )
}
