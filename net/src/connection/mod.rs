//! The connection array: a fixed set of connections to one peer, an element for each thread.

mod array;
#[cfg(test)]
mod tests;

pub use array::{Accepted, ArrayError, CONNECTIONS_MAX, ConnectionArray, SocketParameter};
