//! Which trains the kernel refused, and what trains may be because of it.
//!
//! The kernel can fragment a packet, but not the segments of a train: where a path is narrower than our link, it
//! refuses the whole train (`EMSGSIZE`; `EINVAL` in older kernels). The worker then remembers the size for that peer.
//! It does so for [`MOST_NARROW`] peers; one more, and the size holds for everybody. Where the kernel cannot segment at
//! all, nobody gets trains. The worker forgets what it learnt of narrow paths, for all peers at once, when [`REMEMBER`]
//! has passed since the last refusal of that kind, and what holds for everybody likewise, since paths may widen and
//! links may change. Trains are explained in [`crate::offload`].

use crate::offload::batch::Limits;
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

/// A packet of this size fits any path with its outer headers: 552, the least path MTU that Linux believes
/// (`net.ipv4.route.min_pmtu`), less 28. A train of such packets is not refused for its size.
const CERTAIN_SIZE: u16 = 524;
/// How long a refusal is remembered: as long as the kernel remembers a path MTU (`net.ipv4.route.mtu_expires`).
const REMEMBER: Duration = Duration::from_secs(600);
/// The worker remembers so many narrow peers. With more, everybody's trains get smaller packets.
const MOST_NARROW: usize = 64;

/// Why the kernel refused a train.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// The path is narrower than the train's packets.
    Size,
    /// The kernel cannot segment on the way to a peer. It then counts for all peers.
    Segmentation,
}

/// The refusals that one worker remembers.
#[derive(Debug)]
pub(super) struct Refusals {
    /// What trains may be when nothing was refused.
    unrefused: Limits,
    /// What the trains of all peers may be now.
    limits: Limits,
    /// When [`Refusals::limits`] was lowered last.
    limited: Option<Instant>,
    /// Peers whose path is narrower than our link, with the largest packet for a train to them.
    narrow: Vec<(SocketAddrV4, u16)>,
    /// When a narrow path was noted last.
    narrowed: Option<Instant>,
}

impl Refusals {
    /// Starts without refusals: trains may be what `limits` says.
    pub(super) fn new(limits: Limits) -> Refusals {
        Refusals {
            unrefused: limits,
            limits,
            limited: None,
            narrow: Vec::with_capacity(MOST_NARROW),
            narrowed: None,
        }
    }

    /// What the trains of all peers may be now; [`Refusals::fits`] knows what else holds for one peer.
    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// Whether a packet of `len` bytes may be part of a train to `to`. Otherwise it travels alone, so that the kernel
    /// can fragment it.
    #[inline]
    pub(super) fn fits(&self, to: SocketAddrV4, len: usize) -> bool {
        self.narrow.iter().all(|(peer, most)| *peer != to || len <= usize::from(*most))
    }

    /// Remembers that the kernel refused a train of `segment_size` to `to` with `errno`, so that the next train is not
    /// refused for the same cause.
    pub(super) fn learn(&mut self, to: SocketAddrV4, segment_size: u16, errno: i32, now: Instant) -> Cause {
        let cause = self.note(to, segment_size, errno, now);
        debug_assert!(!self.may_train(to, segment_size), "the same train would be refused again");
        cause
    }

    /// Changes what is remembered; returns why the kernel refused.
    fn note(&mut self, to: SocketAddrV4, segment_size: u16, errno: i32, now: Instant) -> Cause {
        let uncertain = errno == libc::EINVAL && segment_size > CERTAIN_SIZE;
        if errno != libc::EMSGSIZE && !uncertain {
            self.limited = Some(now);
            self.limits.enabled = false;
            return Cause::Segmentation;
        }
        let most = segment_size.saturating_sub(1);
        self.narrowed = Some(now);
        if !self.narrow_for(to, most) {
            // Too many to tell apart: nobody gets longer packets in trains than the narrowest of them.
            self.limited = Some(now);
            self.limits.max_segment_size = most.min(self.limits.max_segment_size);
        }
        Cause::Size
    }

    /// Notes the largest packet for a train to `to`; false if there is no room to remember another peer.
    fn narrow_for(&mut self, to: SocketAddrV4, most: u16) -> bool {
        if let Some((_, size)) = self.narrow.iter_mut().find(|(peer, _)| *peer == to) {
            *size = most.min(*size);
            return true;
        }
        let room = self.narrow.len() < MOST_NARROW;
        if room {
            self.narrow.push((to, most));
        }
        room
    }

    /// Whether packets of `segment_size` may now make a train to `to`.
    fn may_train(&self, to: SocketAddrV4, segment_size: u16) -> bool {
        let anybody = self.limits.enabled && segment_size <= self.limits.max_segment_size;
        anybody && self.fits(to, usize::from(segment_size))
    }

    /// Whether nothing is remembered, so that there is nothing to forget.
    pub(super) fn is_empty(&self) -> bool {
        self.limited.is_none() && self.narrowed.is_none()
    }

    /// Forgets what was remembered for longer than [`REMEMBER`].
    pub(super) fn forget(&mut self, now: Instant) {
        let expired = |since: Option<Instant>| {
            since.is_some_and(|since| now.saturating_duration_since(since) > REMEMBER)
        };
        if expired(self.narrowed) {
            self.narrow.clear();
            self.narrowed = None;
        }
        if expired(self.limited) {
            self.limits = self.unrefused;
            self.limited = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const LIMITS: Limits = Limits { max_segments: 64, max_segment_size: 1472, enabled: true };
    const LATER: Duration = Duration::from_secs(601);

    fn peer(n: usize) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, u8::try_from(n).unwrap()), 8285)
    }

    #[test]
    fn a_refused_size_holds_for_its_peer_alone_and_the_smallest_counts() {
        let (mut refusals, now) = (Refusals::new(LIMITS), Instant::now());
        assert!(refusals.is_empty() && refusals.fits(peer(1), 65_535));
        for (size, most) in [(1400, 1399), (1000, 999), (1200, 999)] {
            assert_eq!(refusals.learn(peer(1), size, libc::EMSGSIZE, now), Cause::Size);
            assert!(refusals.fits(peer(1), most) && !refusals.fits(peer(1), most + 1), "after {size}");
        }
        assert!(refusals.fits(peer(2), 65_535), "another peer");
        assert!(refusals.fits(SocketAddrV4::new(*peer(1).ip(), 1), 65_535), "another port of the same host");
        assert_eq!(refusals.limits(), LIMITS);
    }

    /// `EINVAL` may mean either, and a size that fits everywhere tells them apart.
    #[test]
    fn the_cause_is_told_by_errno_and_size() {
        let cases = [
            (libc::EMSGSIZE, 1400, Cause::Size),
            (libc::EMSGSIZE, 100, Cause::Size),
            (libc::EINVAL, 525, Cause::Size),
            (libc::EINVAL, 524, Cause::Segmentation),
            (libc::EIO, 1400, Cause::Segmentation),
        ];
        for (errno, size, cause) in cases {
            let mut refusals = Refusals::new(LIMITS);
            assert_eq!(refusals.learn(peer(1), size, errno, Instant::now()), cause, "{errno} at {size}");
            let enabled = cause == Cause::Size;
            assert_eq!(refusals.limits(), Limits { enabled, ..LIMITS }, "{errno} at {size}");
        }
    }

    #[test]
    fn more_narrow_peers_than_can_be_remembered_narrow_everybody() {
        let (mut refusals, now) = (Refusals::new(LIMITS), Instant::now());
        for n in 0..MOST_NARROW {
            refusals.learn(peer(n), 1000, libc::EMSGSIZE, now);
        }
        assert_eq!(refusals.limits(), LIMITS);
        refusals.learn(peer(0), 900, libc::EMSGSIZE, now);
        assert_eq!(refusals.limits(), LIMITS, "a peer that is known needs no room");
        for (size, most) in [(1300, 1299), (1100, 1099), (1200, 1099)] {
            refusals.learn(peer(200), size, libc::EMSGSIZE, now);
            assert_eq!(refusals.limits(), Limits { max_segment_size: most, ..LIMITS });
        }
        assert!(refusals.fits(peer(200), 1300), "the common limit is the trains' to keep");
        refusals.learn(peer(200), 1400, libc::EIO, now);
        let both = Limits { max_segment_size: 1099, enabled: false, ..LIMITS };
        assert_eq!(refusals.limits(), both);
    }

    #[test]
    fn each_kind_is_forgotten_ten_minutes_after_its_last_refusal() {
        let (mut refusals, start) = (Refusals::new(LIMITS), Instant::now());
        refusals.learn(peer(1), 1400, libc::EMSGSIZE, start);
        refusals.forget(start + REMEMBER);
        assert!(!refusals.fits(peer(1), 1400), "not yet");
        let second = start + REMEMBER / 2;
        refusals.learn(peer(2), 1400, libc::EMSGSIZE, second);
        refusals.learn(peer(1), 1400, libc::EIO, start);
        refusals.forget(start + LATER);
        assert_eq!(refusals.limits(), LIMITS, "the first kind is over");
        assert!(!refusals.fits(peer(1), 1400), "the second refusal of a size keeps both");
        assert!(!refusals.is_empty());
        refusals.forget(second + LATER);
        assert!(refusals.fits(peer(1), 1400) && refusals.fits(peer(2), 1400));
        assert!(refusals.is_empty());
    }
}
