//! A seccomp filter for tests. It makes `io_uring_setup` fail on a thread of its own and on the threads that this one
//! starts, as Docker's default profile does.

/// Runs `body` on a new thread on which every `io_uring_setup` fails with `errno`.
pub(crate) fn without_io_uring<T: Send + 'static>(
    errno: i32,
    body: impl FnOnce() -> T + Send + 'static,
) -> T {
    let thread = std::thread::spawn(move || {
        forbid(errno);
        body()
    });
    thread.join().unwrap()
}

fn forbid(errno: i32) {
    let setup = u32::try_from(libc::SYS_io_uring_setup).unwrap();
    let refuse = libc::SECCOMP_RET_ERRNO | u32::try_from(errno).unwrap();
    let code = |code: u32| u16::try_from(code).unwrap();
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    // The system call's number is the first word of `struct seccomp_data` (include/uapi/linux/seccomp.h).
    let mut filter = [
        step(code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS), 0, 0, 0),
        step(code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K), 0, 1, setup),
        step(code(libc::BPF_RET | libc::BPF_K), 0, 0, refuse),
        step(code(libc::BPF_RET | libc::BPF_K), 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
    // SAFETY: with this operation, prctl takes numbers only.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    let mode = libc::SECCOMP_MODE_FILTER;
    // SAFETY: the kernel copies `program` and the four steps that it points at; both outlive the call.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) }, 0);
}
