//! Promise: a host without io_uring is told once what it lacks, and never leases a subnet that it cannot serve.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(unsafe_code, reason = "a filter of system calls is set by prctl")]

mod lab;

use lab::{Api, Lab, ms, secs};

/// Runs `body` on a thread on which, and in all processes that it starts, `io_uring_setup` fails with EPERM, as under
/// Docker's default seccomp profile.
fn without_io_uring<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            forbid();
            body()
        });
        thread.join().unwrap()
    })
}

fn forbid() {
    let setup = u32::try_from(libc::SYS_io_uring_setup).unwrap();
    let refuse = libc::SECCOMP_RET_ERRNO | u32::try_from(libc::EPERM).unwrap();
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: u16::try_from(code).unwrap(), jt, jf, k };
    // The system call's number is the first word of `struct seccomp_data` (include/uapi/linux/seccomp.h).
    let mut filter = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, setup),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, refuse),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
    let mode = libc::SECCOMP_MODE_FILTER;
    // SAFETY: the kernel copies `program` and the four steps that it points at; both outlive the call. Root needs no
    // PR_SET_NO_NEW_PRIVS for it.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) }, 0);
}

#[test]
fn what_is_missing_is_said_once_and_without_alarm() {
    let Some(lab) = Lab::start(1) else { return };
    lab.put_config(Api::V3, r#"{"Network":"10.10.0.0/16","Backend":{"Type":"udp"}}"#);
    let mut daemon = without_io_uring(|| lab.daemon(1, &["--etcd-api=v3", "--workers=2"]));
    daemon.subnet();
    // The device is made anew, and the workers with it.
    lab.ip(&format!("-n {} link del flannel0", lab.host(1)));
    daemon.wait_text("the TUN device is back", secs(5));
    std::thread::sleep(ms(300));
    let text = daemon.text();
    let told: Vec<_> = text.lines().filter(|line| line.contains("io_uring")).collect();
    assert_eq!(told.len(), 1, "{text}");
    assert!(told[0].contains(" INFO ") && told[0].contains("no io_uring: using poll"), "{text}");
    assert!(told[0].contains("kernel.io_uring_disabled"), "what would bring it: {text}");
    assert!(!told[0].contains("--engine=poll"), "advice that was followed already: {text}");
    assert_eq!(text.matches("carrier=poll").count(), 4, "{text}");
}

#[test]
fn a_demand_that_cannot_be_met_ends_the_start_before_the_lease() {
    let Some(lab) = Lab::start(1) else { return };
    lab.put_config(Api::V3, r#"{"Network":"10.10.0.0/16","Backend":{"Type":"udp"}}"#);
    let mut daemon = without_io_uring(|| lab.daemon(1, &["--etcd-api=v3", "--engine=uring"]));
    let status = daemon.wait(secs(10)).expect("an end");
    let text = daemon.text();
    assert_eq!(status.code(), Some(1), "{text}");
    assert!(text.contains("kernel.io_uring_disabled") && text.contains("--engine=poll"), "{text}");
    assert!(!text.contains("Lease acquired"), "{text}");
    assert!(lab.leases(Api::V3).is_empty(), "the subnet would be gone for a day");
}
