//! These tests run against the real kernel, each in a network namespace of its own.

use super::super::namespace::{ip, run};
use super::super::route::Filter;
use super::*;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::RouteMessage;
use rtnetlink::packet_core::{DoneMessage, ErrorMessage};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The request for all IPv4 routes of a table.
fn routes_of(table: u8) -> RouteNetlinkMessage {
    let mut request = RouteMessage::default();
    request.header.address_family = AddressFamily::Inet;
    request.header.table = table;
    RouteNetlinkMessage::GetRoute(request)
}

/// The kernel refuses to list a table that does not exist, and says so where the end of the list is said.
#[test]
fn a_refusal_at_the_end_of_a_list_is_an_error() {
    run("netlink::dump::tests::a_refusal_at_the_end_of_a_list_is_an_error", || async {
        let netlink = Netlink::new().unwrap();
        ip("link add d0 type bridge");
        ip("link set d0 up");
        ip("route add 10.0.0.0/8 dev d0");
        let error = netlink.dump("list table 99", routes_of(99), Some).await.unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENOENT), "{error}");
        assert!(error.to_string().starts_with("list table 99: "), "{error}");
        let all = netlink.dump("list table 254", routes_of(254), Some).await.unwrap();
        assert_eq!(all.len(), 1, "the filter of the table is taken: {all:?}");
    });
}

/// A main table without any route is empty and no error.
#[test]
fn a_namespace_without_routes_has_none() {
    run("netlink::dump::tests::a_namespace_without_routes_has_none", || async {
        let netlink = Netlink::new().unwrap();
        assert!(netlink.routes(Filter::default(), |_| true).await.unwrap().is_empty());
        assert_eq!(netlink.default_route_link().await.unwrap(), None);
    });
}

/// A filter that the kernel does not know leads to the whole table, of which `keep` takes its part.
#[test]
fn an_unknown_filter_is_done_without() {
    run("netlink::dump::tests::an_unknown_filter_is_done_without", || async {
        let netlink = Netlink::new().unwrap();
        ip("link set lo up");
        ip("link add d0 type bridge");
        ip("link set d0 up");
        ip("route add 10.0.0.0/8 dev d0");
        let RouteNetlinkMessage::GetRoute(mut request) = routes_of(254) else { unreachable!() };
        request.header.destination_prefix_length = 8;
        let all = netlink.dump("list", RouteNetlinkMessage::GetRoute(request), Some).await.unwrap();
        assert!(all.len() > 1, "the local routes too: {all:?}");
    });
}

/// While another program adds and removes addresses, each list holds every address that was there all the time, once.
#[test]
fn a_list_that_was_interrupted_is_read_again() {
    run("netlink::dump::tests::a_list_that_was_interrupted_is_read_again", || async {
        let netlink = Netlink::new().unwrap();
        ip("link add d0 type bridge");
        ip("link set d0 up");
        let d0 = netlink.link_by_name("d0").await.unwrap().unwrap().index;
        let mut batch = tempfile::NamedTempFile::new().unwrap();
        for n in 0..1500 {
            writeln!(batch, "addr add 10.{}.{}.1/32 dev d0", n / 250, n % 250).unwrap();
        }
        ip(&format!("-batch {}", batch.path().display()));
        let mut churn = tempfile::NamedTempFile::new().unwrap();
        for n in 0..200 {
            // The first in the kernel's order moves all others when it goes.
            writeln!(churn, "addr del 10.0.{n}.1/32 dev d0\naddr add 10.0.{n}.1/32 dev d0").unwrap();
        }
        let over = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&over);
        let churning = std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                ip(&format!("-batch {}", churn.path().display()));
            }
        });
        let (mut complete, mut interrupted) = (0, 0);
        for _ in 0..40 {
            let Ok(all) = netlink.addresses(Some(d0)).await else {
                interrupted += 1;
                continue;
            };
            let mut stable: Vec<_> = all.iter().map(|a| a.address).filter(|a| a.octets()[1] > 0).collect();
            let listed = stable.len();
            stable.sort_unstable();
            stable.dedup();
            assert_eq!((listed, stable.len()), (1250, 1250), "an address is missing or there twice");
            complete += 1;
        }
        over.store(true, Ordering::Relaxed);
        churning.join().unwrap();
        eprintln!("{complete} complete lists, {interrupted} that were interrupted to the end");
        assert!(complete > 0);
    });
}

/// What the kernel says about a list, message by message.
#[test]
fn every_end_of_a_list_is_read() {
    let message = |payload| NetlinkMessage::<RouteNetlinkMessage>::new(NetlinkHeader::default(), payload);
    let done = |code| {
        let mut done = DoneMessage::default();
        done.code = code;
        part(message(NetlinkPayload::Done(done)))
    };
    assert!(matches!(done(0), Ok(Part::Done)));
    assert_eq!(done(-libc::EINVAL).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    let mut error = ErrorMessage::default();
    error.code = std::num::NonZeroI32::new(-libc::EPERM);
    let error = part(message(NetlinkPayload::Error(error)));
    assert_eq!(error.unwrap_err().raw_os_error(), Some(libc::EPERM));
    let overrun = part(message(NetlinkPayload::Overrun(Vec::new())));
    assert_eq!(overrun.unwrap_err().raw_os_error(), Some(libc::ENOBUFS));
    assert!(matches!(part(message(NetlinkPayload::Noop)), Ok(Part::Nothing)));
    for bytes in [&[][..], &[15, 0, 0, 0], &[200, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]] {
        assert!(first(bytes).is_err(), "{bytes:?}");
    }
}
