//! How many threads the arithmetic uses, when not to use them, and what becomes of its memory.

use crate::model::config::TextConfig;

/// Read by the library before every matrix product, and by its thread pool once.
const COUNT: &str = "RAYON_NUM_THREADS";

/// Products below so many multiplications are done before a second thread is awake.
const WORTH_SHARING: usize = 1 << 20;

/// Fixes the number of threads for the arithmetic at what this process may use; to be called first in `main`.
///
/// Where the variable `RAYON_NUM_THREADS` is not set, candle 0.11 opens and parses `/proc/cpuinfo` before every matrix
/// product: four fifths of the time of a small model's token, and more the more processors there are. Does nothing when
/// the variable is set, or once other threads run.
pub fn fix_count() {
    let alone = std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() == 1);
    if let (true, None, Ok(count)) = (alone, std::env::var_os(COUNT), std::thread::available_parallelism()) {
        set(&count.to_string());
    }
}

#[allow(unsafe_code)]
fn set(count: &str) {
    // SAFETY: the environment must not be read by another thread meanwhile, and the only caller has just counted one
    // thread in this process: the calling one.
    unsafe { std::env::set_var(COUNT, count) }
}

/// Tells the allocator to keep what is freed: a frame's buffers of some megabytes otherwise go back to the system after
/// every product, and the next one finds new pages, each to be zeroed. To be called first in `main`.
#[allow(unsafe_code)]
pub fn keep_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: numbers for the allocator's settings.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 256 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 512 << 20);
    }
}

/// Whether a token's largest product is too small to be shared among threads.
pub fn is_small(text: &TextConfig) -> bool {
    text.hidden_size * text.intermediate_size < WORTH_SHARING
}

/// Makes the calling thread a pool of its own, for good: what it would ask of the pool it then does itself.
///
/// Waking and waiting take longer than a small model's products; alone on its thread it is up to twice as fast when
/// other work has the other processors, and two workers then use two of them.
pub fn stay_on_this_thread() {
    // A thread that belongs to a pool already is left there.
    if rayon::current_thread_index().is_none()
        && let Err(error) = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build()
    {
        tracing::debug!("a small model shares its products among threads: {error}");
    }
}
