//! The codes that the plug-in ends with: stable, for scripts.

/// What was asked for is done; where a refresh was waited for, it Succeeded.
pub const OK: i32 = 0;
/// The refresh Failed, or had ended before it could be changed; or an operator acts that must not.
pub const FAILED: i32 = 1;
/// The command line or a value in it was wrong.
pub const USAGE: i32 = 2;
/// The refresh was Cancelled.
pub const CANCELLED: i32 = 3;
/// The refresh had not ended in time; it goes on.
pub const TIMED_OUT: i32 = 4;
/// There is no such refresh (any more), or no such log.
pub const NOT_FOUND: i32 = 5;
/// The caller may not do this.
pub const FORBIDDEN: i32 = 6;
/// The Kubernetes API could not be reached, or erred.
pub const UNAVAILABLE: i32 = 7;
/// What was to be printed could not be written; what was asked for is done.
pub const UNWRITTEN: i32 = 8;
/// Interrupted by SIGINT (Ctrl-C) while waiting; the refresh goes on.
pub const INTERRUPTED: i32 = 130;
/// Ended by SIGTERM while waiting; the refresh goes on.
pub const TERMINATED: i32 = 143;

/// The codes in words, for `--help`.
pub const HELP: &str = "\
Exit codes:
  0    done; a refresh that was waited for Succeeded
  1    the refresh Failed, or had ended before it could be changed
  2    the command line, or a value in it, is wrong
  3    the refresh was Cancelled
  4    the refresh had not ended within --timeout; it goes on
  5    there is no such refresh any more, or no such log
  6    you may not do this
  7    the Kubernetes API cannot be reached, or failed
  8    standard output cannot be written; what was asked for is done
  130  interrupted while waiting (143: by SIGTERM); the refresh goes on";
