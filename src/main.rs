//! The `flanneld` binary: parse, run, exit code.

use flanneld::cli::{self, Options, Parsed};
use flanneld::daemon::{self, Networks, Settings};
use flanneld::log::LogLines;
use std::io::Write;
use std::process::ExitCode;
use tracing_subscriber::filter::LevelFilter;

fn main() -> ExitCode {
    let options = match cli::parse(std::env::args_os(), |name| std::env::var_os(name)) {
        Parsed::Run(options) => *options,
        Parsed::Exit { code, stderr } => {
            // Where nobody reads it, the exit code has to do.
            let _ = std::io::stderr().write_all(stderr.as_bytes());
            return ExitCode::from(code);
        }
    };
    let level = if options.log.v > 0 { LevelFilter::DEBUG } else { LevelFilter::INFO };
    tracing_subscriber::fmt()
        .with_writer(|| LogLines(std::io::stderr()))
        .with_ansi(false)
        .with_max_level(level)
        // A line that cannot be written is lost; the library's complaint about it would be a panic.
        .log_internal_errors(false)
        .init();
    match daemon::run(settings(options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// What was typed, as the daemon wants it.
fn settings(options: Options) -> Settings {
    Settings {
        etcd: options.etcd,
        iface: options.iface,
        subnet_file: options.subnet_file,
        masq: options.masq,
        lease: options.lease,
        engine: options.engine,
        status: options.status,
        networks: options.networks.map(|several| Networks { names: several.names, dir: several.dir }),
    }
}
