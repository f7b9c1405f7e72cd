//! The `flanneld` binary: it parses, runs the daemon and ends with its exit code.

use flanneld::cli::{self, Parsed};
use flanneld::daemon;
use flanneld::log::LogLines;
use std::io::Write;
use std::process::ExitCode;
use tracing_subscriber::filter::LevelFilter;

fn main() -> ExitCode {
    let settings = match cli::parse(std::env::args_os(), |name| std::env::var_os(name)) {
        Parsed::Run(settings) => *settings,
        Parsed::Exit { code, stderr } => {
            // If stderr is closed, the exit code alone tells what happened.
            let _ = std::io::stderr().write_all(stderr.as_bytes());
            return ExitCode::from(code);
        }
    };
    let level = if settings.log.v > 0 { LevelFilter::DEBUG } else { LevelFilter::INFO };
    tracing_subscriber::fmt()
        .with_writer(|| LogLines(std::io::stderr()))
        .with_ansi(false)
        .with_max_level(level)
        // A line that cannot be written is lost. The library would complain on stderr too, and panic there.
        .log_internal_errors(false)
        .init();
    match daemon::run(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}
