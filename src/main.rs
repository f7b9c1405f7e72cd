//! The `flanneld` binary: it parses, runs the daemon and ends with its exit code.

use flanneld::cli::{self, Parsed};
use flanneld::{daemon, log};
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let (settings, remarks, mut reread) = match cli::parse(std::env::args_os(), |name| std::env::var_os(name))
    {
        Parsed::Run { settings, remarks, reread } => (*settings, remarks, reread),
        Parsed::Exit { code: 0, stderr } => {
            // If stderr is closed, the exit code alone tells what happened.
            let _ = std::io::stderr().write_all(stderr.as_bytes());
            return ExitCode::SUCCESS;
        }
        Parsed::Exit { code, stderr } => {
            log::say_error(&stderr);
            return ExitCode::from(code);
        }
    };
    log::start(settings.log.v);
    for remark in remarks {
        tracing::warn!("{remark}");
    }
    match daemon::run(settings, Box::new(move || reread.again())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::from(error.exit_code())
        }
    }
}
