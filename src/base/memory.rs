//! How much memory this process has taken, as Linux counts it.

/// The most memory that was resident at any one time since the start, in MiB; pages of mapped files count too.
///
/// From `VmHWM` in `/proc/self/status` (see `proc_pid_status(5)`); `None` where there is no such file.
pub fn peak_mib() -> Option<f64> {
    parse(&std::fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// The memory that is resident now, in MiB, counted as in `peak_mib`.
pub fn resident_mib() -> Option<f64> {
    parse(&std::fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

/// The kernel writes `kB` and means KiB.
fn parse(status: &str, key: &str) -> Option<f64> {
    let value = status.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = value.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    Some(kib as f64 / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_in_mib() {
        let status = "Name:\tx\nVmPeak:\t    4096 kB\nVmHWM:\t    2560 kB\nVmRSS:\t 1024 kB\n";
        assert_eq!((parse(status, "VmHWM:"), parse(status, "VmRSS:")), (Some(2.5), Some(1.0)));
        assert_eq!(parse("VmPeak:\t 4096 kB\n", "VmHWM:"), None);
        assert_eq!(parse("VmHWM:\t many kB\n", "VmHWM:"), None);
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
