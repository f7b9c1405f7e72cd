//! Keys and values as flannel writes them.

use super::*;
use proptest::prelude::*;
use serde_json::json;

fn key(text: &str) -> Result<SubnetKey, KeyError> {
    text.parse()
}

#[test]
fn flannels_keys_are_read_and_written() {
    for text in ["10.12.13.0-24", "10.12.13.0-24&fd00:12:13::-56", "0.0.0.0-0", "10.1.5.254-31"] {
        assert_eq!(key(text).unwrap().to_string(), text);
    }
    assert_eq!(key("10.12.13.0-24").unwrap(), SubnetKey::v4("10.12.13.0/24".parse().unwrap()));
}

#[test]
fn flannels_reject_vectors_are_rejected() {
    let rejects = [
        "",
        "10",
        "10.12.13.0",
        "10.12.13-24",
        "10.12.13.300-24",
        "10.12.13.0-24hi",
        "&2001::-56",
        "10.12.13.0-24&:12:13:-56",
        "10.12.13.0-24&20011::-56",
        "10.12.13.0-24&2001-56",
        "10.12.13.0-24&2001::",
        "10.12.13.0-24&2001::-56hi",
        "10.12.13.0-32",
        "10.12.13.0-33",
        "10.12.13.0-256",
        "10.12.13.0-24&fd00::-128",
        "10.12.13.0--24",
        "10.12.13.0-+24",
    ];
    for text in rejects {
        assert!(key(text).is_err(), "{text:?} was accepted");
    }
}

#[test]
fn a_second_spelling_of_a_subnet_is_rejected() {
    for text in ["10.12.13.7-24x", "10.12.13.0-024", "10.12.13.0-24&fd00:0:0::-56", "x10.12.13.0-24"] {
        assert!(key(text).is_err(), "{text:?} was accepted");
    }
}

#[test]
fn a_key_off_the_boundary_is_itself_and_means_its_subnet() {
    let odd = key("10.12.13.7-24").unwrap();
    assert_eq!(
        (odd.to_string().as_str(), odd.subnet().to_string().as_str()),
        ("10.12.13.7-24", "10.12.13.0/24")
    );
    assert_ne!(odd, key("10.12.13.0-24").unwrap(), "two keys of the store are two keys here");
}

fn vxlan() -> LeaseAttrs {
    LeaseAttrs {
        backend_type: Some("vxlan".to_owned()),
        backend_data: Some(json!({"VNI": 1, "VtepMAC": "aa:bb:cc:dd:ee:ff"}).into()),
        ..LeaseAttrs::new(Ipv4Addr::new(192, 0, 2, 7))
    }
}

#[test]
fn values_are_flannels_byte_for_byte() {
    let udp = LeaseAttrs::new(Ipv4Addr::new(192, 0, 2, 7));
    assert_eq!(udp.encode(Generation::V2), r#"{"PublicIP":"192.0.2.7"}"#);
    assert_eq!(udp.encode(Generation::V3), r#"{"PublicIP":"192.0.2.7","PublicIPv6":null}"#);
    let new = r#"{"PublicIP":"192.0.2.7","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"aa:bb:cc:dd:ee:ff"}}"#;
    assert_eq!(vxlan().encode(Generation::V3), new);
    assert_eq!(LeaseAttrs::decode(new).unwrap(), vxlan());
    let old =
        r#"{"PublicIP":"192.0.2.7","BackendType":"vxlan","BackendData":{"VtepMAC":"aa:bb:cc:dd:ee:ff"}}"#;
    assert_eq!(LeaseAttrs::decode(old).unwrap().encode(Generation::V2), old);
}

#[test]
fn the_node_id_follows_what_flannel_writes() {
    let node = Some("a-1".parse().unwrap());
    let udp = LeaseAttrs { node_id: node.clone(), ..LeaseAttrs::new(Ipv4Addr::new(192, 0, 2, 7)) };
    assert_eq!(udp.encode(Generation::V2), r#"{"PublicIP":"192.0.2.7","NodeID":"a-1"}"#);
    assert_eq!(udp.encode(Generation::V3), r#"{"PublicIP":"192.0.2.7","PublicIPv6":null,"NodeID":"a-1"}"#);
    let vxlan = LeaseAttrs { node_id: node, asked_by: NodeId::published("b"), ..vxlan() };
    let text = r#"{"PublicIP":"192.0.2.7","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"aa:bb:cc:dd:ee:ff"},"NodeID":"a-1","AskedBy":"b"}"#;
    assert_eq!(vxlan.encode(Generation::V3), text);
    assert_eq!(LeaseAttrs::decode(text).unwrap(), vxlan);
    // Whatever else stands there, flannel would take the lease, and so do we.
    for odd in ["7", "null", "\"\"", "{}"] {
        let text = format!(r#"{{"PublicIP":"192.0.2.7","NodeID":{odd}}}"#);
        assert_eq!(LeaseAttrs::decode(&text).unwrap(), LeaseAttrs::new(Ipv4Addr::new(192, 0, 2, 7)));
    }
}

#[test]
fn values_are_read_as_go_reads_them() {
    let attrs =
        LeaseAttrs::decode(r#" {"publicip":"192.0.2.1","Novel":{"PublicIP":1},"PUBLICIP":"192.0.2.7"} "#);
    assert_eq!(attrs.unwrap(), LeaseAttrs::new(Ipv4Addr::new(192, 0, 2, 7)));
    let nulls = r#"{"PublicIP":"192.0.2.7","BackendType":null,"BackendData":null,"BackendV6Data":{"a":1}}"#;
    assert_eq!(LeaseAttrs::decode(nulls).unwrap(), LeaseAttrs::new(Ipv4Addr::new(192, 0, 2, 7)));
}

#[test]
fn bad_values_say_what_is_wrong() {
    let error = |text| LeaseAttrs::decode(text).unwrap_err().to_string();
    assert_eq!(error(""), "the value is empty");
    assert_eq!(error(" \n"), "the value is empty");
    assert_eq!(error("{}"), "PublicIP: not an IPv4 address: nothing");
    assert_eq!(error(r#"{"PublicIP":null}"#), "PublicIP: not an IPv4 address: null");
    assert_eq!(error(r#"{"PublicIP":"fc00::1"}"#), r#"PublicIP: not an IPv4 address: "fc00::1""#);
    assert_eq!(error(r#"{"PublicIP":"1.2.3.4","BackendType":7}"#), "BackendType: not a string: 7");
    for text in ["y", "[]", "null", r#"{"PublicIP":"1.2.3.4"} x"#, r#"{"PublicIP":"1.2.3.4""#] {
        assert!(matches!(LeaseAttrs::decode(text), Err(ValueError::Syntax(_))), "{text}");
    }
}

proptest! {
    #[test]
    fn any_key_survives(addr: u32, len in 0u8..=31, v6: Option<(u128, u8)>) {
        let ipv6 = v6.map(|(addr, len)| Ipv6Net::new(addr.into(), len % 128).unwrap().trunc());
        let subnet = SubnetKey { ipv4: Ipv4Net::new(addr.into(), len).unwrap(), ipv6 };
        prop_assert_eq!(key(&subnet.to_string()).unwrap(), subnet);
    }

    #[test]
    fn whatever_is_accepted_is_written_back_the_same(text in "[0-9]{1,3}\\.[0-9]{1,3}\\.[0-9]\\.0-[0-9]{1,2}(&[a-f0-9:]{2,9}-[0-9]{2})?") {
        if let Ok(read) = key(&text) {
            prop_assert_eq!(read.to_string(), text);
        }
    }

    #[test]
    fn any_value_survives(ip: u32, kind in proptest::option::of("\\PC{1,12}"), data: Option<(String, u64)>, node: String, asker: String, new: bool) {
        let attrs = LeaseAttrs {
            public_ip: ip.into(),
            backend_type: kind,
            backend_data: data.map(|(key, value)| json!({ key: value }).into()),
            node_id: NodeId::published(&node),
            asked_by: NodeId::published(&asker),
        };
        let form = if new { Generation::V3 } else { Generation::V2 };
        prop_assert_eq!(LeaseAttrs::decode(&attrs.encode(form)).unwrap(), attrs);
    }

    #[test]
    fn no_value_makes_it_panic(text in "\\PC*") {
        let _ = LeaseAttrs::decode(&text);
    }
}
