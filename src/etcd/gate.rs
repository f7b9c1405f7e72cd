//! What keeps a store that refused us from being asked over and over.
//!
//! A refusal costs etcd more than an answer: it hashes a password with bcrypt, or shakes hands over TLS. The callers try
//! again every few seconds, as they do when a store is silent. So after a refusal the gate is closed, for a time that
//! doubles up to some minutes, and every call gets the same refusal without the store being asked. It opens at once
//! when one of the files changes by which we were refused.

use super::Settings;
use super::files::Files;
use crate::store::{Backoff, Error, chance};
use rand::rngs::StdRng;
use std::cell::RefCell;
use std::time::Duration;
use tokio::time::Instant;

/// The longest time for which a store that refused us is not asked. 40 hosts with a wrong password then make one attempt
/// in nine seconds together, which is less than a hundredth of a core for etcd's bcrypt.
const LONGEST: Duration = Duration::from_secs(8 * 60);

/// The same where no password is asked for: every site is there, and one side refuses the other's certificate. A handshake
/// costs etcd a hundredth of bcrypt.
const BRIEF: Duration = Duration::from_secs(30);
const _: () = assert!(BRIEF.as_secs() < LONGEST.as_secs());

/// What a refusal costs etcd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cost {
    /// The hash of a password.
    Password,
    /// A handshake over TLS.
    Handshake,
}

impl Cost {
    /// The cost of a refusal: `unreached` sites were tried and none served, or one has answered.
    pub(super) fn of(unreached: usize) -> Self {
        if unreached == 0 { Self::Password } else { Self::Handshake }
    }
}

/// The gate before the calls of one kind.
#[derive(Debug)]
pub(super) struct Gate(RefCell<State>);

#[derive(Debug)]
struct State {
    backoff: Backoff,
    rng: StdRng,
    closed: Option<Closed>,
}

#[derive(Debug)]
struct Closed {
    until: Instant,
    reason: String,
    /// What the files held when we were refused.
    files: Files,
}

impl Gate {
    /// An open gate.
    pub(super) fn new() -> Self {
        Self(RefCell::new(State { backoff: Backoff::new(LONGEST), rng: chance(), closed: None }))
    }

    /// Lets a call pass, or returns the refusal that the last one met.
    ///
    /// # Errors
    /// [`Error::Denied`] while the gate is closed.
    pub(super) fn pass(&self, now: Instant, settings: &Settings) -> Result<(), Error> {
        let is_news = match &self.0.borrow().closed {
            None => return Ok(()),
            // Files that cannot be read are news too: the call will say what is wrong with them.
            Some(closed) if Files::read(settings).as_ref() != Ok(&closed.files) => true,
            Some(closed) if now < closed.until => return Err(Error::Denied(closed.reason.clone())),
            Some(_) => false,
        };
        if is_news {
            self.open();
        } else {
            self.0.borrow_mut().closed = None;
        }
        Ok(())
    }

    /// Closes the gate after a refusal that the store gave to what these files held.
    pub(super) fn close(&self, now: Instant, reason: &str, files: Files, cost: Cost) {
        let mut state = self.0.borrow_mut();
        let State { backoff, rng, closed } = &mut *state;
        let delay = backoff.next(rng);
        let until = now + if cost == Cost::Handshake { delay.min(BRIEF) } else { delay };
        *closed = Some(Closed { until, reason: reason.to_owned(), files });
    }

    /// The store has accepted us: the next refusal counts as a first one.
    pub(super) fn accepted(&self) {
        self.0.borrow_mut().backoff.reset();
    }

    /// Opens the gate: the next refusal counts as a first one.
    fn open(&self) {
        let mut state = self.0.borrow_mut();
        state.backoff.reset();
        state.closed = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::tests::settings;

    fn files(password: &str) -> Files {
        Files { password: Some(password.to_owned()), ..Files::default() }
    }

    #[test]
    fn refusals_become_rare_and_new_files_end_the_wait() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("password");
        std::fs::write(&path, "old\n").unwrap();
        let settings = settings(&path);
        let gate = Gate::new();
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        // A caller that asks every second for two hours.
        let mut asked = Vec::new();
        for second in 0..7200 {
            if gate.pass(at(second), &settings).is_ok() {
                asked.push(second);
                gate.close(at(second), "no", files("old"), Cost::Password);
            }
        }
        assert!(asked.len() > 15 && asked.len() < 50, "{asked:?}");
        assert!(asked.iter().filter(|at| (360..600).contains(*at)).count() <= 2, "{asked:?}");
        assert!(asked.windows(2).all(|pair| pair[1] - pair[0] <= LONGEST.as_secs() + 1), "{asked:?}");

        let now = at(7200);
        gate.close(now, "no", files("old"), Cost::Password);
        assert_eq!(gate.pass(now, &settings), Err(Error::Denied("no".to_owned())));
        std::fs::write(&path, "new\n").unwrap();
        assert_eq!(gate.pass(now, &settings), Ok(()));
        gate.close(now, "no", files("new"), Cost::Password);
        assert!(gate.pass(now, &settings).is_err());
        assert_eq!(gate.pass(at(7201), &settings), Ok(()), "a first refusal with these files");
        for _ in 0..20 {
            gate.close(at(7201), "no", files("new"), Cost::Password);
        }
        gate.open();
        assert_eq!(gate.pass(at(7201), &settings), Ok(()));
    }
    #[test]
    fn a_refused_handshake_is_tried_again_sooner() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("password");
        std::fs::write(&path, "old\n").unwrap();
        let (settings, gate, now) = (settings(&path), Gate::new(), Instant::now());
        for (cost, passes) in [(Cost::of(2), true), (Cost::of(0), false)] {
            for _ in 0..20 {
                gate.close(now, "no", files("old"), cost);
            }
            assert!(gate.pass(now, &settings).is_err());
            assert_eq!(gate.pass(now + BRIEF, &settings).is_ok(), passes, "{cost:?}");
        }
    }
}
