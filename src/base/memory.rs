//! How much memory this process has taken, as Linux counts it.

/// The most memory that was resident at any one time since the start, in MiB; pages of mapped files count too.
///
/// From `VmHWM` in `/proc/self/status` (see `proc_pid_status(5)`); `None` where there is no such file.
pub fn peak_mib() -> Option<f64> {
    parse(&std::fs::read_to_string("/proc/self/status").ok()?)
}

/// The kernel writes `kB` and means KiB.
fn parse(status: &str) -> Option<f64> {
    let value = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = value.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    Some(kib as f64 / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_read_in_mib() {
        assert_eq!(parse("Name:\tx\nVmPeak:\t    4096 kB\nVmHWM:\t    2560 kB\nVmRSS:\t 1024 kB\n"), Some(2.5));
        assert_eq!(parse("VmPeak:\t 4096 kB\n"), None);
        assert_eq!(parse("VmHWM:\t many kB\n"), None);
    }

    #[test]
    fn memory_in_use_is_in_the_peak() {
        let Some(before) = peak_mib() else { return };
        // Seen by nobody, it would not be allocated.
        let held = std::hint::black_box(vec![1_u8; 64 << 20]);
        let after = peak_mib().unwrap();
        drop(held);
        assert!(after >= 64.0 && after >= before, "{before}, then {after}");
    }
}
