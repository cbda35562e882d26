//! The command line.

use crate::exit_code::ExitCode;
use crate::units::{parse_duration, parse_size};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// How sizes and times are written, below the help of commands that take them.
const SIZES_AND_TIMES: &str = "SIZE is a number of bytes, or one with K, M, G or T (powers of 1024), such as 256M or 1.5G. \
    TIME is a number with ms, s, m or h, such as 250ms or 2s.";
/// The same, of times alone.
const TIMES: &str = "TIME is a number with ms, s, m or h, such as 250ms or 2s.";

/// The port of peers.
pub(crate) const DEFAULT_PORT: u16 = 7370;

/// Live mirroring of a directory to a second machine, in user space
///
/// `mirrorfs mount /mnt/data --peer HOST` gives programs a directory whose files live in a local ext4 image; each block
/// written is also sent to `mirrorfs peer` on HOST, which keeps an identical image.
#[derive(Debug, Parser)]
#[command(name = "mirrorfs", version, max_term_width = 110, arg_required_else_help = true)]
#[command(after_long_help = ExitCode::help())]
pub(crate) struct Cli {
    /// Log more (twice: everything); RUST_LOG has the last word
    #[arg(short, long, global = true, action = clap::ArgAction::Count, display_order = 900)]
    pub(crate) verbose: u8,
    /// What to do
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve a directory from an image, mirrored to a peer
    #[command(after_help = SIZES_AND_TIMES)]
    Mount(Box<MountArgs>),
    /// Keep mirror images for the mounts of other hosts
    #[command(after_help = TIMES)]
    Peer(PeerArgs),
    /// End a mount
    ///
    /// Waits up to 10 s for a live peer; what it does not have by then stays safely queued on disk and is sent after the next mount.
    Umount {
        /// The mount point
        mountpoint: PathBuf,
        /// Take it down even if files are in use or replies wait for the peer
        #[arg(long)]
        force: bool,
    },
    /// Wait until everything written so far is durable on the mirror
    ///
    /// sync(2) never reaches a FUSE file system; this command and fsync(2) do.
    #[command(after_help = TIMES)]
    Sync {
        /// The mount point
        mountpoint: PathBuf,
        /// Give up after this time, with exit code 5 [default: wait until it is so]
        #[arg(long, value_name = "TIME", value_parser = parse_duration)]
        timeout: Option<Duration>,
    },
    /// Show how a mount, a state directory or a peer's directory is doing
    Status {
        /// A mount point, a state directory or a peer's directory; all known mounts without it
        target: Option<PathBuf>,
        /// As JSON
        #[arg(long)]
        json: bool,
        /// Show it again each second, until interrupted
        #[arg(long)]
        watch: bool,
    },
    /// Look into the queue of what the peer does not have yet; works whether or not the mount is running
    #[command(subcommand)]
    Journal(JournalCommand),
    /// Change what is done with replies that wait for an absent peer (synchronous mode)
    OnOutage {
        /// The mount point
        mountpoint: PathBuf,
        /// The policy
        policy: OnOutageArg,
    },
    /// Make the mirror images of a node primaries, to be mounted here
    ///
    /// For a takeover: the primary is gone, or was unmounted there. The old primary can't mirror to a promoted image by mistake; it
    /// follows once it is demoted.
    Promote {
        /// The directory of one node below a peer's directory: DIR/NODE
        dir: PathBuf,
        /// Also in the middle of a resync, when the image is no state that the primary was in
        #[arg(long)]
        force: bool,
    },
    /// Make the primary images of a state directory mirrors of the host that has taken over
    ///
    /// What this side wrote alone is kept as a copy of the image, LUN.diverged-SECONDS beside it; then all of it is sent anew.
    Demote {
        /// A mount point that is not mounted, or its state directory
        dir: PathBuf,
        /// Keep no copy of what this side wrote alone
        #[arg(long)]
        discard: bool,
    },
    /// Make the key of a pair of hosts; copy the file to the other host
    Keygen {
        /// The file to make
        file: PathBuf,
    },
    /// Show the main job, on this machine, in a temporary directory
    Demo {
        /// Leave the temporary directory with both images
        #[arg(long)]
        keep: bool,
    },
    /// Print shell completions
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages: DIR/man1/mirrorfs.1 and more
    Man {
        /// Where to, such as /usr/local/share/man
        dir: PathBuf,
    },
}

/// Arguments of `mount`.
#[derive(Clone, Debug, Args)]
pub(crate) struct MountArgs {
    /// The mount point: an empty directory
    pub(crate) mountpoint: PathBuf,
    /// The peer: a name or address, with :PORT unless that is 7370
    #[arg(long, value_name = "HOST[:PORT]", required_unless_present = "local", conflicts_with = "local")]
    pub(crate) peer: Option<String>,
    /// Mirror nothing
    #[arg(long)]
    pub(crate) local: bool,
    /// Size of an image that does not exist yet
    #[arg(long, value_name = "SIZE", default_value = "10G", value_parser = parse_size)]
    pub(crate) size: u64,
    /// When a write is answered
    #[arg(long, value_enum, default_value_t = Mode::Async)]
    pub(crate) mode: Mode,
    /// Synchronous mode: what happens to replies that wait while the peer is away
    #[arg(long, value_enum, default_value_t = OnOutageArg::Queue)]
    pub(crate) on_outage: OnOutageArg,
    /// Connections to the peer, each with a worker thread
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) workers: u16,
    /// A LUN, shown as a top-level directory (repeatable; one LUN `data` is the root itself); NAME:local is not mirrored
    #[arg(long = "lun", value_name = "NAME[:local]")]
    pub(crate) luns: Vec<String>,
    /// Name under which the peer keeps the mirror [default: host name and state directory's name]
    #[arg(long, value_name = "NAME")]
    pub(crate) node: Option<String>,
    /// Where images and queue live [default: /var/lib/mirrorfs/NAME, or below the user's state directory; NAME comes from the mount point]
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Serve this image file instead of STATE_DIR/data.img
    #[arg(long, value_name = "FILE", conflicts_with = "luns")]
    pub(crate) image: Option<PathBuf>,
    /// What both directions of the link share
    #[command(flatten)]
    pub(crate) link: LinkArgs,
    /// Also be the peer of the other host, at this address
    #[arg(long, value_name = "ADDR:PORT", requires = "mirror_dir", value_parser = parse_listen)]
    pub(crate) listen: Option<SocketAddr>,
    /// Where the other host's mirror images are kept
    #[arg(long, value_name = "DIR", requires = "listen")]
    pub(crate) mirror_dir: Option<PathBuf>,
    /// Memory for requests that the peer does not have yet; beyond it they go to disk
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = parse_size)]
    pub(crate) memory: u64,
    /// Disk space for the queue; beyond it only changed regions are noted [default: a tenth of the free space, at least 1G]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) queue_max: Option<u64>,
    /// FUSE threads [default: one more than processors, 3 to 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=32))]
    pub(crate) threads: Option<u16>,
    /// Serve metrics (Prometheus text) at http://ADDR:PORT/metrics, to whoever reaches that address
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) metrics: Option<SocketAddr>,
    /// Stay in the foreground
    #[arg(long, short)]
    pub(crate) foreground: bool,
    /// Mount options, as for mount(8): ro, noatime, allow_other, and any long option of this command
    #[arg(short = 'o', value_name = "OPTIONS", value_delimiter = ',')]
    pub(crate) options: Vec<String>,
    /// Source shown in /proc/self/mounts [default: the peer, or the image]
    #[arg(long, hide = true)]
    pub(crate) source: Option<String>,
}

/// Arguments of `peer`.
#[derive(Clone, Debug, Args)]
pub(crate) struct PeerArgs {
    /// Address to listen on, TCP and UDP, such as 0.0.0.0:7370 (all of this host's)
    #[arg(long, value_name = "ADDR:PORT", value_parser = parse_listen)]
    pub(crate) listen: SocketAddr,
    /// Where the mirror images are kept: DIR/NODE/LUN.img
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// What both sides share
    #[command(flatten)]
    pub(crate) link: LinkArgs,
    /// Serve metrics (Prometheus text) at http://ADDR:PORT/metrics, to whoever reaches that address
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) metrics: Option<SocketAddr>,
}

/// Protection and times of a link.
#[derive(Clone, Debug, Args)]
pub(crate) struct LinkArgs {
    /// The pair's key [default: /etc/mirrorfs/key, or mirrorfs/key in the user's configuration directory]
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// Go without key and encryption on addresses other than loopback
    #[arg(long)]
    pub(crate) insecure: bool,
    /// Time between heartbeats
    #[arg(long, value_name = "TIME", default_value = "250ms", value_parser = parse_duration)]
    pub(crate) heartbeat_interval: Duration,
    /// Silence that counts as an interruption
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse_duration)]
    pub(crate) heartbeat_timeout: Duration,
    /// Time without a request after which a peer's connection thread looks whether it is still wanted
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_duration)]
    pub(crate) request_timeout: Duration,
    /// Time of steady heartbeats before reconnecting after an interruption
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = parse_duration)]
    pub(crate) probation: Duration,
    /// Time without progress after which a session is ended as stalled
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    pub(crate) stall_timeout: Duration,
}

/// When a write is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// When the local image has it
    Async,
    /// When the mirror has answered it; an fsync when it is durable there
    Sync,
}

/// What happens to replies that wait for an absent peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnOutageArg {
    /// Answer once the request is in the on-disk queue
    Queue,
    /// Keep waiting
    Block,
    /// Fail with EIO; later changes get EROFS
    Readonly,
}

/// The commands of `journal`.
#[derive(Debug, Subcommand)]
pub(crate) enum JournalCommand {
    /// List what waits, oldest first
    Ls {
        /// A mount point or a state directory; all known mounts without it
        target: Option<PathBuf>,
        /// As JSON
        #[arg(long)]
        json: bool,
        /// At most so many rows (0: all)
        #[arg(long, short = 'n', default_value_t = 0, hide_default_value = true)]
        limit: usize,
    },
    /// Show all fields of one record
    Show {
        /// Its sequence number, as `ls` prints it
        sequence: mirrorfs_journal::Sequence,
        /// A mount point or a state directory
        target: Option<PathBuf>,
        /// As JSON
        #[arg(long)]
        json: bool,
        /// Print the payload too, in hexadecimal
        #[arg(short = 'x', long)]
        payload: bool,
    },
    /// Hold every record against its checksum and the index; exit code 1 on damage
    Verify {
        /// A mount point or a state directory; all known mounts without it
        target: Option<PathBuf>,
    },
}

/// Reads an address to listen on.
fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!("'{text}' is not an address of this host with a port: write it like 0.0.0.0:{DEFAULT_PORT} or [::]:{DEFAULT_PORT}")
    })
}

/// Reads the command line; prints help and usage errors itself.
pub(crate) fn parse(arguments: &[OsString]) -> Result<Cli, ExitCode> {
    Cli::try_parse_from(arguments).map_err(|error| {
        let _ = error.print();
        if error.use_stderr() { ExitCode::Usage } else { ExitCode::Success }
    })
}

impl From<&LinkArgs> for mirrorfs_net::config::Times {
    fn from(link: &LinkArgs) -> Self {
        Self {
            heartbeat_interval: link.heartbeat_interval,
            heartbeat_timeout: link.heartbeat_timeout,
            request_timeout: link.request_timeout,
            probation: link.probation,
            stall_timeout: link.stall_timeout,
        }
    }
}

impl LinkArgs {
    /// Refuses times that contradict one another.
    pub(crate) fn check(&self) -> Result<(), crate::exit_code::CliError> {
        if self.heartbeat_timeout < self.heartbeat_interval * 2 {
            return Err(crate::exit_code::CliError::usage(format!(
                "--heartbeat-timeout {:?} is less than twice --heartbeat-interval {:?}: one lost datagram would cut the link",
                self.heartbeat_timeout, self.heartbeat_interval
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
