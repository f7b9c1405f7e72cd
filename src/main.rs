//! The `flanneld` binary: parse, run, exit code.

use flanneld::cli::{self, Options, Parsed};
use flanneld::daemon::{self, Networks, Settings};
use std::process::ExitCode;
use tracing_subscriber::filter::LevelFilter;

fn main() -> ExitCode {
    let options = match cli::parse(std::env::args_os(), |name| std::env::var(name).ok()) {
        Parsed::Run(options) => *options,
        Parsed::Exit { code, stderr } => {
            eprint!("{stderr}");
            return ExitCode::from(code);
        }
    };
    let level = if options.log.v > 0 { LevelFilter::DEBUG } else { LevelFilter::INFO };
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).with_max_level(level).init();
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
