//! `palisade mqtt`: what goes over the broker, for a person or a script at a terminal.

use std::io::{ErrorKind, Write as _};
use std::ops::ControlFlow;
use std::path::Path;

use crate::app::check;
use crate::app::oneshot::print;
use crate::base::clock::Utc;
use crate::base::error::{Context, Error, Kind, Result};
use crate::base::shutdown::Shutdown;
use crate::mqtt::Patience;
use crate::mqtt::schema;
use crate::mqtt::tail::{self, News};

/// Prints what this node publishes until `shutdown`, or until nobody reads it any more: a line a message, or with `json`
/// an object. How the link is goes to standard error.
///
/// # Errors
/// When the configuration is faulty or has no broker, or the output cannot be written.
pub fn tail(file: &Path, json: bool, shutdown: &Shutdown) -> Result<()> {
    let config = check::load(file).map_err(|faults| Error::new(Kind::Config, faults.to_string()))?;
    let none = || Error::new(Kind::Config, format!("{} has no [mqtt] table; must name the broker there", file.display()));
    let config = config.mqtt.ok_or_else(none)?;
    let prefix = &config.topic_prefix;
    let mut written = Ok(());
    tail::follow(&config, Patience::default(), shutdown, |news| {
        let line = match news {
            News::Message(heard) if json => heard.json().to_string(),
            News::Message(heard) => heard.line(prefix, Utc::now()),
            News::Connected => {
                eprintln!("palisade: listening to {prefix}/# at {}:{}", config.host, config.port);
                return ControlFlow::Continue(());
            }
            News::Trouble(sentence, next) => {
                eprintln!("palisade: {sentence}; next try in {:.1} s", next.as_secs_f64());
                return ControlFlow::Continue(());
            }
        };
        let mut out = std::io::stdout().lock();
        match writeln!(out, "{line}").and_then(|()| out.flush()) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                written = Err(error);
                ControlFlow::Break(())
            }
        }
    })?;
    match written {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context(Kind::Io, || "standard output cannot be written"),
        _ => Ok(()),
    }
}

/// Prints the JSON Schema of one payload; of all of them, as one object by name, where none is named.
///
/// # Errors
/// When there is none of that name.
pub fn schema(name: Option<&str>) -> Result<()> {
    let Some(name) = name else {
        let all: Vec<String> = schema::ALL.iter().map(|(name, text)| format!("\"{name}\": {}", text.trim_end())).collect();
        return print(&format!("{{\n{}\n}}", all.join(",\n")));
    };
    let Some((_, text)) = schema::ALL.iter().find(|(known, _)| *known == name) else {
        let names: Vec<&str> = schema::ALL.iter().map(|(name, _)| *name).collect();
        return Err(Error::new(Kind::Input, format!("{name:?} is no payload with a schema; must be one of {}", names.join(", "))));
    };
    print(text.trim_end())
}
