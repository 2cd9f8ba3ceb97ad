//! Which processors lance computes on.

/// How many processors lance leaves to reading and writing.
const RESERVED: &str = "LANCE_IO_CORE_RESERVATION";

/// How many threads lance computes on, where that is said.
const THREADS: &str = "LANCE_CPU_THREADS";

/// Lets lance encode on every processor. By itself it leaves two of them to
/// reading, which a refresh does in threads of its own: of two processors one
/// then encodes, one unit after the other, and the other waits for it. What the
/// environment says already stays.
///
/// # Safety
/// The environment is written to: no other thread may have been started yet.
pub unsafe fn use_all() {
    if [RESERVED, THREADS]
        .iter()
        .all(|name| std::env::var_os(name).is_none())
    {
        // SAFETY: the caller says that this is the only thread.
        unsafe { std::env::set_var(RESERVED, "0") };
    }
}
