//! Exit codes, and the error that carries one to `main`.

use std::fmt;

/// What the program's exit status means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExitCode {
    /// 0: done.
    Success = 0,
    /// 1: it could not be done, or damage was found.
    Failure = 1,
    /// 2: the command line is wrong.
    Usage = 2,
    /// 3: there is no such mount, state directory or running process.
    NotFound = 3,
    /// 4: it is in use by somebody else.
    Busy = 4,
    /// 5: it did not come about in the time given.
    Timeout = 5,
    /// 32: what mount(8) expects of a helper that failed to mount.
    MountFailed = 32,
}

impl ExitCode {
    /// All of them, in words.
    pub(crate) const MEANINGS: [(Self, &str); 7] = [
        (Self::Success, "done"),
        (Self::Failure, "failed, or damage found"),
        (Self::Usage, "wrong usage"),
        (Self::NotFound, "no such mount or state"),
        (Self::Busy, "in use by another process"),
        (Self::Timeout, "not in the time given"),
        (Self::MountFailed, "(as mount(8)'s helper) not mounted"),
    ];

    /// One paragraph for `--help`.
    pub(crate) fn help() -> String {
        let meanings = Self::MEANINGS.map(|(code, meaning)| format!("{} {meaning}", code as u8));
        format!("Exit codes: {}.", meanings.join("; "))
    }

    /// Back from a number, as told by a child process.
    pub(crate) fn from_number(number: i32) -> Self {
        [Self::Success, Self::Usage, Self::NotFound, Self::Busy, Self::Timeout, Self::MountFailed]
            .into_iter()
            .find(|code| *code as i32 == number)
            .unwrap_or(Self::Failure)
    }

    /// As [`Self::from_number`], for a number that comes with an error, which is never a success whatever it says.
    pub(crate) fn of_error(number: i32) -> Self {
        match Self::from_number(number) {
            Self::Success => Self::Failure,
            code => code,
        }
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}

/// An error for the user: what went wrong, with the thing named, and the next step where there is one.
#[derive(Debug)]
pub(crate) struct CliError {
    /// The exit code.
    pub(crate) code: ExitCode,
    message: String,
}

impl CliError {
    /// An error with a code of its own.
    pub(crate) fn new(code: ExitCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
    /// "It could not be done".
    pub(crate) fn failure(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Failure, message)
    }
    /// "The command line is wrong".
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Usage, message)
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Adds what was being done, and on what, to an error.
pub(crate) trait Context<T> {
    /// `what` reads like "open /var/lib/…"; it is put before the cause.
    fn context(self, what: impl FnOnce() -> String) -> Result<T, CliError>;
}

impl<T, E: fmt::Display> Context<T> for Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, CliError> {
        self.map_err(|error| CliError::failure(format!("{}: {error}", what())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process that answered with an error of code 0 made the command that asked it succeed.
    #[test]
    fn an_error_is_never_a_success() {
        assert_eq!(
            [0, 1, 3, -1, 77].map(ExitCode::of_error),
            [ExitCode::Failure, ExitCode::Failure, ExitCode::NotFound, ExitCode::Failure, ExitCode::Failure,]
        );
        assert_eq!(ExitCode::from_number(0), ExitCode::Success);
    }
}
