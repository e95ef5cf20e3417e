//! What a process takes of a machine beside memory, as Linux counts it. Everything is `None` where there is no `/proc`.

use std::fs;
use std::time::Duration;

/// The kernel tells times in hundredths of a second, whatever its own clock is (`USER_HZ`).
const TICK: Duration = Duration::from_millis(10);

/// The processor time, the system's for it included, that a process and its threads have taken; `None` is this process.
pub fn cpu_time(process: Option<u32>) -> Option<Duration> {
    let name = process.map_or("self".to_owned(), |id| id.to_string());
    parse(&fs::read_to_string(format!("/proc/{name}/stat")).ok()?)
}

/// How many threads this process has.
pub fn threads() -> Option<usize> {
    entries("/proc/self/task")
}

/// How many files, sockets and the like this process has open.
pub fn descriptors() -> Option<usize> {
    // The folder that is read here is one of them.
    Some(entries("/proc/self/fd")?.saturating_sub(1))
}

fn entries(folder: &str) -> Option<usize> {
    Some(fs::read_dir(folder).ok()?.count())
}

/// `utime` and `stime` of `proc_pid_stat(5)`: the 14th and 15th field. The second is a name in brackets, whatever it holds.
fn parse(stat: &str) -> Option<Duration> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u32>().ok();
    Some(TICK * ticks()?.checked_add(ticks()?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_times_are_found_behind_any_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194304 100 0 0 0 250 31 9 9 20 0 4 0 100 0 0";
        assert_eq!(parse(stat), Some(Duration::from_millis(2810)));
        assert_eq!(parse("7 (a) S 1"), None);
    }

    #[test]
    fn work_takes_time() {
        let Some(before) = cpu_time(None) else { return };
        let begin = std::time::Instant::now();
        while cpu_time(None).unwrap() < before + 2 * TICK {
            assert!(begin.elapsed() < Duration::from_secs(10), "no time was counted");
        }
        assert!(cpu_time(Some(std::process::id())).unwrap() > before);
        assert!(threads().unwrap() >= 1 && descriptors().unwrap() >= 3);
    }
}
