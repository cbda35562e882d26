//! What a panic does.

/// From here on a panic ends the process, as nothing of a change that it left half done may be committed: the next mount
/// recovers. Only sled's are survived, whose files can be made anew.
pub(crate) fn end_the_process() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        if !mirrorfs_journal::panics_in_sled() {
            std::process::abort();
        }
    }));
}
