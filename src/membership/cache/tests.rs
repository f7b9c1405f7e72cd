//! What is kept is read back whole, or refused with its reason.

use super::*;
use crate::subnet::NodeId;
use proptest::prelude::*;
use std::net::Ipv4Addr;

const CONFIG: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":7}}"#;
const HOUR: u64 = 3600 * 1000;

fn saved() -> Moment {
    Moment { wall_ms: 1_800_000_000_000, boot_ms: 50 * HOUR, boot_id: "a".to_owned() }
}

/// So much later by the clock of the boot, and by the wall clock.
fn later(boot_ms: i64, wall_ms: i64) -> Moment {
    let Moment { wall_ms: wall, boot_ms: boot, boot_id } = saved();
    Moment {
        wall_ms: wall.checked_add_signed(wall_ms).unwrap(),
        boot_ms: boot.checked_add_signed(boot_ms).unwrap(),
        boot_id,
    }
}

/// The machine was started anew, so long before `wall_ms` after the file was written.
fn rebooted(wall_ms: i64, up_ms: u64) -> Moment {
    Moment { boot_ms: up_ms, boot_id: "b".to_owned(), ..later(0, wall_ms) }
}

fn origin() -> Origin {
    Origin {
        prefix: "/coreos.com/network".to_owned(),
        api: "auto".to_owned(),
        endpoints: vec!["http://192.0.2.1:2379".to_owned(), "http://192.0.2.2:2379".to_owned()],
        machine: 7,
    }
}

fn own(lease: Option<u64>) -> Entry {
    let value = r#"{"PublicIP":"192.0.2.9","PublicIPv6":null,"BackendType":"vxlan"}"#;
    keyspace::entry("10.5.7.0-24", value, 41, lease).unwrap()
}

fn attrs(n: u32) -> LeaseAttrs {
    let data = n.is_multiple_of(2).then(|| serde_json::json!({"VNI": 7, "VtepMAC": "02:00:00:00:00:01"}));
    LeaseAttrs {
        backend_type: Some("vxlan".to_owned()),
        backend_data: data.map(Into::into),
        ..LeaseAttrs::new(Ipv4Addr::from(0xc633_6400 + n))
    }
}

fn peers(n: u32) -> Vec<(SubnetKey, LeaseAttrs)> {
    let key = |n: u32| SubnetKey::v4(ipnet::Ipv4Net::new(Ipv4Addr::from(0x0a06_0000 + n * 256), 24).unwrap());
    (0..n).map(|n| (key(n), attrs(n))).collect()
}

fn bytes(lease: Option<u64>, left: Option<Duration>, count: u32) -> Vec<u8> {
    let peers = peers(count);
    let peers = peers.iter().map(|(key, attrs)| (*key, attrs));
    encode(saved(), &origin(), (CONFIG, Generation::V3), (&own(lease), left), peers)
}

fn a_day() -> Vec<u8> {
    bytes(Some(77), Some(Duration::from_millis(24 * HOUR)), 3)
}

fn reason(result: Result<Contents, Refusal>) -> String {
    result.expect_err("a refusal").to_string()
}

#[test]
fn what_was_kept_is_read_back_whole() {
    let found = decode(&a_day(), &origin(), &later(5000, 5000)).unwrap();
    assert_eq!(found.config, Config::parse(CONFIG).unwrap());
    assert_eq!((found.text.as_str(), found.entry), (CONFIG, own(Some(77))));
    assert_eq!(found.left, Some(Duration::from_millis(24 * HOUR - 5000)));
    assert_eq!((found.age, found.stepped), (Duration::from_secs(5), None));
    let back: Vec<_> = found.peers.into_iter().map(|entry| (entry.key, entry.attrs)).collect();
    assert_eq!(back, peers(3));
    // A reservation has no end, however long ago that was.
    let years = 20_000 * i64::try_from(HOUR).unwrap();
    assert_eq!(decode(&bytes(None, None, 0), &origin(), &later(years, years)).unwrap().left, None);
}

#[test]
fn a_file_of_another_store_or_host_is_refused() {
    type Change = fn(&mut Origin);
    let cases: [(Change, &str); 4] = [
        (
            |o| o.prefix.push('x'),
            "another --etcd-prefix: /coreos.com/network, and here it is /coreos.com/networkx",
        ),
        (|o| o.api = "v2".to_owned(), "another --etcd-api: auto, and here it is v2"),
        (|o| o.endpoints = vec!["http://192.0.2.3:2379".to_owned()], "another etcd: http://192.0.2.1:2379,"),
        (
            |o| o.machine = 8,
            "another host, by the checksum of its machine id: 00000007, and here it is 00000008",
        ),
    ];
    for (change, text) in cases {
        let mut here = origin();
        change(&mut here);
        let said = reason(decode(&a_day(), &here, &later(0, 0)));
        assert!(said.contains(text), "{said}");
    }
    // The same host and port spelled otherwise.
    for endpoint in ["https://192.0.2.2:2379/", "192.0.2.2:2379", "http://user@192.0.2.2:2379/etcd"] {
        let here = Origin { endpoints: vec![endpoint.to_owned()], ..origin() };
        assert!(decode(&a_day(), &here, &later(0, 0)).is_ok(), "{endpoint}");
    }
    // Members come and go: one that is still there is enough.
    let here = Origin { endpoints: vec!["x".to_owned(), "http://192.0.2.2:2379".to_owned()], ..origin() };
    decode(&a_day(), &here, &later(0, 0)).unwrap();
}

#[test]
fn a_host_is_known_by_its_node_id_or_else_by_its_address() {
    let (kept, other, machine) = (NodeId::random(1), NodeId::random(2), NodeId::of_machine(3));
    let check = |there: Option<&NodeId>, (here, last): (Option<&NodeId>, u8)| {
        let mut found = decode(&a_day(), &origin(), &later(0, 0)).unwrap();
        found.entry.attrs.node_id = there.cloned();
        let attrs = LeaseAttrs::new(Ipv4Addr::new(192, 0, 2, last));
        let us = Identity::new(LeaseAttrs { node_id: here.cloned(), ..attrs }, Some(machine.clone()));
        found.check_host(&us).map_err(|refusal| refusal.to_string())
    };
    let by_address = "it is of another host, by its public IP: 192.0.2.9, and here it is 192.0.2.8";
    let by_name =
        |here: &NodeId| format!("it is of another host, by its node id: {other}, and here it is {here}");
    // A file of a version that had no NodeID, or a daemon without one: the address, as it always was.
    for (there, here) in [(None, None), (None, Some(&kept)), (Some(&kept), None)] {
        assert_eq!(check(there, (here, 9)), Ok(()), "{there:?} {here:?}");
        assert_eq!(check(there, (here, 8)), Err(by_address.to_owned()), "{there:?} {here:?}");
    }
    assert_eq!(check(Some(&kept), (Some(&kept), 8)), Ok(()), "its address has changed");
    assert_eq!(
        check(Some(&other), (Some(&kept), 9)),
        Err(by_name(&kept)),
        "its address went to another host"
    );
    // The machine id may be a clone's.
    assert_eq!(check(Some(&machine), (Some(&machine), 9)), Ok(()));
    assert_eq!(check(Some(&machine), (Some(&machine), 8)), Err(by_address.to_owned()));
    // The state directory is new; what was published before it is known again.
    assert_eq!(check(Some(&machine), (Some(&kept), 9)), Ok(()));
}

/// The same text with another checksum that is right.
fn resealed(text: &str) -> Vec<u8> {
    let body = &text[..text.len() - SUM_LENGTH];
    format!("{body}{:08x}\n", crc32fast::hash(body.as_bytes())).into_bytes()
}

#[test]
fn another_format_and_what_makes_no_sense_are_refused() {
    let text = String::from_utf8(a_day()).unwrap();
    for number in ["0", "2", "11"] {
        let other = resealed(&text.replacen("cache 1\n", &format!("cache {number}\n"), 1));
        let said = reason(decode(&other, &origin(), &later(0, 0)));
        assert_eq!(said, format!("its format is number {number}, and this version reads 1"));
    }
    for (from, to, says) in [
        ("10.5.7.0-24", "10.9.7.0-24", "its subnet is not of its network"),
        ("10.5.7.0-24", "10.5.7.0-25", "its subnet is not of its network"),
        ("\"left_ms\":86400000", "\"left_ms\":null", "has an end and is a reservation"),
        ("\"generation\":3", "\"generation\":4", "generation 4"),
        ("\"peers\":3", "\"peers\":4", "3 peers instead of 4"),
        ("10.5.0.0/16", "10.5.0.0/36", "its network config: Network"),
        ("10.6.1.0-24 ", "10.6.1.0-24", "a line is no peer"),
        ("10.6.1.0-24 ", "10.6.1.00-24 ", "bad address"),
        ("\"PublicIP\":\"198.51.100.1\"", "\"PublicIP\":\"198.51.100\"", "PublicIP"),
    ] {
        assert!(text.contains(from), "{from}");
        let said = reason(decode(&resealed(&text.replacen(from, to, 1)), &origin(), &later(0, 0)));
        assert!(said.contains(says), "{to}: {said}");
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let whole = a_day();
    for cut in 0..whole.len() {
        assert!(decode(&whole[..cut], &origin(), &later(0, 0)).is_err(), "{cut} of {} bytes", whole.len());
    }
    let longer = [&whole[..], b"\n"].concat();
    assert!(decode(&longer, &origin(), &later(0, 0)).is_err());
}

#[test]
fn every_byte_counts() {
    let whole = a_day();
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut other = whole.clone();
            other[at] ^= 1 << bit;
            assert!(decode(&other, &origin(), &later(0, 0)).is_err(), "byte {at}, bit {bit}");
        }
    }
}

#[test]
fn the_lease_ends_by_the_clock_of_the_boot() {
    let day = i64::try_from(24 * HOUR).unwrap();
    let left = |now: &Moment| decode(&a_day(), &origin(), now).map(|found| found.left.unwrap().as_millis());
    assert_eq!(left(&later(0, 0)).unwrap(), u128::from(24 * HOUR));
    assert_eq!(left(&later(day - 1, day - 1)).unwrap(), 1);
    assert_eq!(reason(decode(&a_day(), &origin(), &later(day, day))), "its lease ended 0ns ago");
    assert_eq!(reason(decode(&a_day(), &origin(), &later(day + 60_000, day))), "its lease ended 60s ago");
}

#[test]
fn a_wall_clock_that_was_set_is_noticed() {
    let hour = i64::try_from(HOUR).unwrap();
    let found = |now: &Moment| decode(&a_day(), &origin(), now).unwrap();
    // Set back: the clock of the boot counts.
    let back = found(&later(2 * hour, -5 * hour));
    assert_eq!((back.left, back.stepped), (Some(Duration::from_millis(22 * HOUR)), Some(-7 * 3600)));
    // Set forward, or the machine was stopped and resumed: the longer time counts.
    let forward = found(&later(2 * hour, 5 * hour));
    assert_eq!((forward.left, forward.stepped), (Some(Duration::from_millis(19 * HOUR)), Some(3 * 3600)));
    assert!(reason(decode(&a_day(), &origin(), &later(0, 25 * hour))).contains("its lease ended"));
    // The clocks drift, and are read one after the other.
    assert_eq!(found(&later(hour, hour + 1900)).stepped, None);
    // No boot goes backwards.
    let said = reason(decode(&a_day(), &origin(), &later(-1, 1000)));
    assert!(said.contains("written later in this boot"), "{said}");
}

#[test]
fn after_a_reboot_the_wall_clock_counts_and_is_distrusted() {
    let hour = i64::try_from(HOUR).unwrap();
    let result = |now: &Moment| decode(&a_day(), &origin(), now);
    let found = result(&rebooted(2 * hour, HOUR)).unwrap();
    // A tenth of 24 hours is given up.
    assert_eq!(found.left, Some(Duration::from_millis(24 * HOUR * 9 / 10 - 2 * HOUR)));
    assert!(reason(result(&rebooted(22 * hour, HOUR))).contains("its lease ended"));
    // The clock is behind: it was wrong then or is wrong now.
    assert!(reason(result(&rebooted(-1, 0))).contains("a time before the file was written"));
    // By the clock the file was written while this boot lasted, which cannot be.
    assert!(reason(result(&rebooted(hour, 2 * HOUR))).contains("written after that"));
    // Without a name for the boot nobody knows whether it is the same.
    let nameless = Moment { boot_id: String::new(), ..saved() };
    let peers: [(SubnetKey, &LeaseAttrs); 0] = [];
    let left = Some(Duration::from_millis(24 * HOUR));
    let file = encode(
        nameless.clone(),
        &origin(),
        (CONFIG, Generation::V3),
        (&own(Some(7)), left),
        peers.into_iter(),
    );
    let now = Moment { wall_ms: nameless.wall_ms + HOUR, ..nameless };
    assert!(reason(decode(&file, &origin(), &now)).contains("written after that"));
}

#[test]
fn this_moment_is_read_from_the_kernel() {
    let first = Moment::now();
    std::thread::sleep(Duration::from_millis(20));
    let second = Moment::now();
    assert!(second.boot_ms > first.boot_ms && second.wall_ms > first.wall_ms, "{first:?} {second:?}");
    assert!(first.boot_id.len() >= 32 && first.boot_id == second.boot_id, "{first:?}");
    assert!(first.wall_ms > 1_700_000_000_000, "{first:?}");
}

#[test]
fn networks_have_files_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let dir = StateDir::open(dir.path()).unwrap();
    let settings = etcd::Settings {
        endpoints: vec!["http://127.0.0.1:1".to_owned()],
        prefix: "/x".to_owned(),
        api: etcd::Api::Auto,
        ca_file: None,
        cert_file: None,
        key_file: None,
        credentials: None,
        timeout: etcd::Settings::TIMEOUT,
    };
    let file = |name| Cache::new(dir.clone(), name, &settings).file().to_owned();
    assert_eq!(
        (file(""), file("blue"), file("..")),
        ("network.cache".to_owned(), "network-blue.cache".to_owned(), "network-...cache".to_owned())
    );
    for name in ["", "blue", "red.1"] {
        Cache::new(dir.clone(), name, &settings).write(b"").unwrap();
    }
    dir.write("network-", b"").unwrap();
    assert_eq!(Cache::networks(&dir), BTreeSet::from(["blue", "red.1"].map(str::to_owned)));
    let cache = Cache::new(dir, "", &settings);
    cache.remove().unwrap();
    assert!(cache.load(&Moment::now()).unwrap().is_none());
    cache.write(b"nonsense").unwrap();
    assert!(cache.load(&Moment::now()).unwrap_err().to_string().contains("damaged"));
    cache.remove().unwrap();
    assert!(cache.load(&Moment::now()).unwrap().is_none());
}

/// Ten thousand peers are written and read in a moment; `--nocapture` shows the figures.
#[test]
fn ten_thousand_peers_are_cheap() {
    let count = 10_000;
    let all = peers(count);
    let left = Some(Duration::from_secs(86_400));
    let start = std::time::Instant::now();
    let file = encode(
        saved(),
        &origin(),
        (CONFIG, Generation::V3),
        (&own(Some(7)), left),
        all.iter().map(|(k, a)| (*k, a)),
    );
    let encoded = start.elapsed();
    // The peers of this test go beyond the network; the reader leaves that to the lease machine.
    let start = std::time::Instant::now();
    let found = decode(&file, &origin(), &later(0, 0)).unwrap();
    let decoded = start.elapsed();
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::open(dir.path()).unwrap();
    let start = std::time::Instant::now();
    state.write("network.cache", &file).unwrap();
    let text =
        format!("{} bytes, text {encoded:?}, disk {:?}, back {decoded:?}", file.len(), start.elapsed());
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("{text}\n").as_bytes());
    assert_eq!(found.peers.len(), count as usize);
    assert!(file.len() < 2 << 20, "{text}");
    assert!(encoded + decoded < Duration::from_secs(5), "{text}");
}

proptest! {
    #[test]
    fn no_damage_goes_unnoticed(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let whole = a_day();
        let mut other = whole.clone();
        for (at, byte) in damage {
            let at = at.index(other.len());
            other[at] = byte;
        }
        let result = decode(&other, &origin(), &later(0, 0));
        prop_assert!(other == whole || result.is_err());
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in "\\PC*") {
        let _ = decode(&bytes, &origin(), &later(0, 0));
        let _ = decode(&resealed(&format!("{MAGIC} {VERSION}\n{text}\n12345678\n")), &origin(), &later(0, 0));
    }

    #[test]
    fn no_clocks_make_it_panic(wall: u64, boot: u64, then: u64, up: u64, same: bool) {
        let one = Moment { wall_ms: then, boot_ms: up, boot_id: "a".to_owned() };
        let two = Moment { wall_ms: wall, boot_ms: boot, boot_id: if same { "a" } else { "b" }.to_owned() };
        if let Ok(passed) = one.until(&two) {
            let _ = passed.left(Some(Duration::from_secs(100)));
        }
    }
}
