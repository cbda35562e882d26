//! mirrorfs: live mirroring of a directory to a second machine, in user space.
fn main() {}
