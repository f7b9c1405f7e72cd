//! Hosts without io_uring: with `auto` the engine says so and goes on with poll; with `uring` it fails and names the
//! remedy.

use super::rig::*;
use super::*;
use crate::engine::{Carrier, EngineError};
use crate::netlink::namespace;
use crate::ring::RingError;
use crate::ring::tests::forbid::without_io_uring;
use std::io::{self, Write};
use std::process::Command as Process;
use std::sync::Mutex;

/// All that the process logs.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn start() -> Log {
        let log = Log::default();
        let writer = log.clone();
        tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).init();
        log
    }

    fn warnings(&self) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().filter(|line| line.contains("WARN")).map(str::to_owned).collect()
    }
}

/// Starts with `carrier`, and sees packets pass both ways.
fn assert_poll_carries_on(carrier: Carrier, log: &Log, cause: &str) {
    let rig = Rig::with(Shape::new(carrier), |_| ());
    assert_eq!(rig.engine.carriers(), [Carrier::Poll]);
    let warnings = log.warnings();
    assert_eq!(warnings.len(), 1, "said once: {warnings:?}");
    assert!(warnings[0].contains("using poll") && warnings[0].contains(cause), "{warnings:?}");
    let host = host();
    host.send_to(b"out", (FAR, 4000)).unwrap();
    assert_eq!(rig.peer_gets()[28..], b"out"[..]);
    let ports = (4000, address_of(&host).port());
    rig.peer_sends(&Spec { destination: HOST.octets(), ports, ..incoming(40) }.build());
    assert_eq!(receive(&host), Some(ramp(40)));
    rig.stop();
}

fn refusal_of(carrier: Carrier) -> EngineError {
    Rig::attempt(Shape::new(carrier), |_| ()).err().expect("no engine")
}

#[test]
fn where_seccomp_forbids_it() {
    namespace::run("engine::tests::fallback::where_seccomp_forbids_it", || async {
        let log = Log::start();
        without_io_uring(libc::EPERM, move || {
            assert_poll_carries_on(Carrier::Auto, &log, "seccomp");
            let error = refusal_of(Carrier::Uring);
            assert!(matches!(error, EngineError::Ring(RingError::Forbidden)), "{error}");
            let text = error.to_string();
            assert!(text.contains("kernel.io_uring_disabled") && text.contains("--engine=poll"), "{text}");
            assert_eq!(log.warnings().len(), 1, "an error needs no warning beside it");
        });
    });
}

#[test]
fn where_the_kernel_has_none() {
    namespace::run("engine::tests::fallback::where_the_kernel_has_none", || async {
        let log = Log::start();
        without_io_uring(libc::ENOSYS, move || {
            assert_poll_carries_on(Carrier::Auto, &log, "no io_uring");
            assert!(matches!(refusal_of(Carrier::Uring), EngineError::Ring(RingError::Absent)));
        });
    });
}

/// The process really runs out: it has one descriptor too few for the ring.
#[test]
fn where_descriptors_run_out() {
    namespace::run("engine::tests::fallback::where_descriptors_run_out", || async {
        let log = Log::start();
        let limit = |soft: u64| {
            let (pid, soft) = (std::process::id().to_string(), format!("--nofile={soft}:"));
            assert!(Process::new("prlimit").args(["--pid", &pid, &soft]).status().unwrap().success());
        };
        let mut hoard = Vec::new();
        let rig = Rig::with(Shape::new(Carrier::Auto), |_| {
            limit(100);
            while let Ok(file) = std::fs::File::open("/dev/null") {
                hoard.push(file);
            }
            // That leaves room for the worker's event descriptor alone.
            hoard.pop();
        });
        limit(1024);
        assert_eq!(rig.engine.carriers(), [Carrier::Poll]);
        assert!(log.warnings()[0].contains("Too many open files"), "{:?}", log.warnings());
        rig.stop();
    });
}
