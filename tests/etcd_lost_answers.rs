//! Writes that happened although their answer was lost.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use flanneld::etcd::{Api, Store};
use flanneld::store::{Error, Registry};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use support::{Etcd, attrs, key, run};

const DAY: Duration = Duration::from_secs(86_400);
/// The last byte of the address in a value whose writer gets no answer.
const CURSED: u8 = 77;

/// A relay to etcd that swallows every answer once it has carried a cursed value.
fn relay(etcd: &Etcd) -> String {
    let target = etcd.url().trim_start_matches("http://").to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for client in listener.incoming().take(50).flatten() {
            let server = TcpStream::connect(&target).unwrap();
            let deaf = Arc::new(AtomicBool::new(false));
            let pairs =
                [(client.try_clone().unwrap(), server.try_clone().unwrap(), true), (server, client, false)];
            for (from, to, upward) in pairs {
                let deaf = Arc::clone(&deaf);
                std::thread::spawn(move || carry(from, to, upward, &deaf));
            }
        }
    });
    url
}

fn carry(mut from: TcpStream, mut to: TcpStream, upward: bool, deaf: &AtomicBool) {
    let cursed = attrs(CURSED).public_ip.to_string();
    let mut bytes = [0; 16_384];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        if upward && String::from_utf8_lossy(&bytes[..count]).contains(&cursed) {
            deaf.store(true, Ordering::SeqCst);
        }
        if (upward || !deaf.load(Ordering::SeqCst)) && to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

/// A store that reaches etcd through the relay at first, and directly when that fails.
fn store(etcd: &Etcd, api: Api) -> Store {
    let mut settings = support::settings(vec![relay(etcd), etcd.url()], api, "/n");
    settings.timeout = Duration::from_millis(600);
    support::store(&settings)
}

fn is_lost<T>(result: Result<T, Error>) -> bool {
    matches!(result, Err(Error::Unavailable(_)))
}

fn etcd_leases(etcd: &Etcd) -> usize {
    etcd.etcdctl(&["lease", "list"]).lines().skip(1).count()
}

/// The lease that the lost write attached must not be revoked: that would free a subnet in use.
#[test]
fn a_renewal_without_an_answer_keeps_the_subnet() {
    for api in [Api::V2, Api::V3] {
        let etcd = Etcd::start();
        run(async {
            let store = store(&etcd, api);
            let made = store.create(key("10.1.5.0-24"), &attrs(1), DAY).await.unwrap();
            assert!(is_lost(store.update(&made, &attrs(CURSED), DAY).await));
            assert_eq!(store.update(&made, &attrs(1), DAY).await, Err(Error::Conflict));
            let found = store.list().await.unwrap().entries;
            assert_eq!(found.len(), 1);
            assert_eq!((found[0].attrs.clone(), found[0].key), (attrs(CURSED), made.key));
            let other = store.create(key("10.1.6.0-24"), &attrs(2), DAY).await.unwrap();
            assert_eq!(store.list().await.unwrap().entries, [found[0].clone(), other.clone()]);

            let renewed = store.update(&found[0], &attrs(1), DAY).await.unwrap();
            assert_eq!(store.list().await.unwrap().entries, [renewed, other]);
            if api == Api::V3 {
                assert_eq!(etcd_leases(&etcd), 2);
            }
        });
    }
}

#[test]
fn a_creation_without_an_answer_is_found_again() {
    for api in [Api::V2, Api::V3] {
        let etcd = Etcd::start();
        run(async {
            let store = store(&etcd, api);
            assert_eq!(store.list().await.unwrap().entries, []);
            assert!(is_lost(store.create(key("10.1.5.0-24"), &attrs(CURSED), DAY).await));
            assert_eq!(store.create(key("10.1.5.0-24"), &attrs(CURSED), DAY).await, Err(Error::Exists));
            let found = store.list().await.unwrap().entries;
            assert_eq!(found.len(), 1);
            let renewed = store.update(&found[0], &attrs(1), DAY).await.unwrap();
            assert_eq!(store.list().await.unwrap().entries, [renewed]);
            if api == Api::V3 {
                assert_eq!(etcd_leases(&etcd), 1);
            }
        });
    }
}
