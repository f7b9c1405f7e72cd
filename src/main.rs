//! The `flanneld` binary: it parses, runs the daemon and ends with its exit code.

use flanneld::cli::{self, Parsed};
use flanneld::daemon;
use flanneld::log::LogLines;
use std::io::Write;
use std::process::ExitCode;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// From this `-v` on, the libraries' debug messages are logged beside ours. HTTP/2 alone has several a second.
const LIBRARIES: u8 = 10;

fn main() -> ExitCode {
    let (settings, remarks) = match cli::parse(std::env::args_os(), |name| std::env::var_os(name)) {
        Parsed::Run { settings, remarks } => (*settings, remarks),
        Parsed::Exit { code, stderr } => {
            // If stderr is closed, the exit code alone tells what happened.
            let _ = std::io::stderr().write_all(stderr.as_bytes());
            return ExitCode::from(code);
        }
    };
    let debug_from = |least| if settings.log.v >= least { LevelFilter::DEBUG } else { LevelFilter::INFO };
    let levels = Targets::new().with_default(debug_from(LIBRARIES)).with_target("flanneld", debug_from(1));
    tracing_subscriber::fmt()
        .with_writer(|| LogLines(std::io::stderr()))
        .with_ansi(false)
        .with_max_level(debug_from(1))
        // A line that cannot be written is lost. The library would complain on stderr too, and panic there.
        .log_internal_errors(false)
        .finish()
        .with(levels)
        .init();
    for remark in remarks {
        tracing::warn!("{remark}");
    }
    match daemon::run(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}
