//! Good and bad network configs, as flannel takes or refuses them.

use super::*;

fn error(text: &str) -> String {
    Config::parse(text).unwrap_err().to_string()
}

/// A network with the length, minimum and maximum of its subnets.
fn derived(text: &str) -> (String, u8, String, String) {
    let c = Config::parse(text).unwrap();
    (c.network.to_string(), c.subnet_len, c.subnet_min.to_string(), c.subnet_max.to_string())
}

#[test]
fn the_tutorials_config() {
    let text = r#"{"Network":"10.0.0.0/8","SubnetLen":20,"SubnetMin":"10.10.0.0","SubnetMax":"10.99.0.0",
        "Backend":{"Type":"udp","Port":7890}}"#;
    assert_eq!(derived(text), ("10.0.0.0/8".into(), 20, "10.10.0.0".into(), "10.99.0.0".into()));
    let config = Config::parse(text).unwrap();
    assert_eq!(config.backend.kind, "udp");
    assert_eq!(config.backend.port(), Ok(7890));
    assert_eq!(config.pool(), 89 * 16 + 1);
    assert_eq!(config.subnet_size(), 4096);
}

#[test]
fn what_is_left_out_is_derived() {
    let cases = [
        (r#"{"Network":"10.3.0.0/16"}"#, 24, "10.3.1.0", "10.3.255.0"),
        (r#"{"Network":"10.3.0.0/22"}"#, 24, "10.3.1.0", "10.3.3.0"),
        (r#"{"Network":"10.3.0.0/23"}"#, 25, "10.3.0.128", "10.3.1.128"),
        (r#"{"Network":"10.3.0.0/28"}"#, 30, "10.3.0.4", "10.3.0.12"),
        (r#"{"Network":"10.3.0.0/16","SubnetLen":28}"#, 28, "10.3.0.16", "10.3.255.240"),
        (r#"{"Network":"10.3.0.0/16","SubnetLen":0,"SubnetMin":"0.0.0.0"}"#, 24, "10.3.1.0", "10.3.255.0"),
        (r#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.0.0"}"#, 24, "10.3.0.0", "10.3.255.0"),
        (r#"{"Network":"255.0.0.0/8","SubnetLen":10}"#, 10, "255.64.0.0", "255.192.0.0"),
    ];
    for (text, len, min, max) in cases {
        let (_, got_len, got_min, got_max) = derived(text);
        assert_eq!((got_len, &*got_min, &*got_max), (len, min, max), "{text}");
    }
    assert_eq!(derived(r#"{"Network":"10.3.7.9/16"}"#).0, "10.3.0.0/16");
}

#[test]
fn keys_match_as_in_go() {
    let text = r#"{"network":"10.1.0.0/16","NETWORK":"10.2.0.0/16","Comment":[1],"subnetlen":null,
        "enableipv4":null,"BACKEND":{"type":"UDP","Type":"Vxlan","TYPE":"uDP","pOrT":1,"Port":2,"port":3}}"#;
    let config = Config::parse(text).unwrap();
    assert_eq!(config.network.to_string(), "10.2.0.0/16");
    assert_eq!(config.backend.kind, "udp");
    assert_eq!(config.backend.port(), Ok(3));
    assert_eq!(config.backend.field::<u32>("PORT"), Ok(Some(3)));
    assert_eq!(config.backend.field::<u32>("VNI"), Ok(None));
    assert!(config.backend.field::<bool>("Port").is_err());
}

#[test]
fn the_default_backend_is_udp_on_8285() {
    let config = Config::parse(r#"{"Network":"10.1.0.0/16","EnableNFTables":true}"#).unwrap();
    assert_eq!((&*config.backend.kind, config.backend.port()), ("udp", Ok(8285)));
    assert!(config.enable_nftables && config.enable_ipv4 && !config.enable_ipv6);
    let config = Config::parse(r#"{"Network":"10.1.0.0/16","Backend":{"Type":"udp","Port":null}}"#).unwrap();
    assert_eq!(config.backend.port(), Ok(8285));
}

#[test]
fn errors_name_the_field_and_the_value() {
    let field =
        |field: &str, value: &str| error(&format!(r#"{{"Network":"10.3.0.0/16","{field}":{value}}}"#));
    assert_eq!(error(r#"{"SubnetLen":24}"#), "network config: Network (absent): is required");
    let cases = [
        ("Network", "null", "must be a string"),
        ("Network", r#""""#, "is not an IPv4 network"),
        ("Network", r#""10.3.0.0""#, "is not an IPv4 network"),
        ("Network", r#""fc00::/48""#, "is an IPv6 network"),
        ("Network", r#""0.0.0.0/0""#, "must not be the whole"),
        ("Network", r#""10.3.0.0/29""#, "is too small"),
        ("SubnetLen", "17", "must be 18 or more"),
        ("SubnetLen", "31", "must be 30 or less"),
        ("SubnetLen", "99999999999", "must be 30 or less"),
        ("SubnetLen", "-1", "must be an integer of 0 or more"),
        ("SubnetLen", "24.0", "must be an integer of 0 or more"),
        ("SubnetLen", r#""24""#, "must be an integer of 0 or more"),
        ("SubnetMin", "null", "must be a string"),
        ("SubnetMin", r#""""#, "must be a string"),
        ("SubnetMin", "10", "must be a string"),
        ("SubnetMin", r#""10.4.0.0""#, "is not in the range of Network 10.3.0.0/16"),
        ("SubnetMax", r#""10.3.9.7""#, "is not on a /24 boundary; the subnet starts at 10.3.9.0"),
        ("SubnetMax", r#""10.3.0.0""#, "is above SubnetMax 10.3.0.0"),
        ("EnableIPv4", r#""yes""#, "must be true or false"),
        ("EnableIPv4", "false", "EnableIPv6 is false too"),
        ("EnableNFTables", "1", "must be true or false"),
        ("Backend", "null", "must be an object"),
        ("Backend", r#""udp""#, "must be an object"),
        ("Backend", "{}", "must have a Type"),
        ("Backend", r#"{"Type":""}"#, "must name a backend"),
        ("Backend", r#"{"Type":7}"#, "must name a backend"),
    ];
    for (name, value, reason) in cases {
        let text = field(name, value);
        assert!(text.contains(reason), "{name} {value}: {text}");
        let shown = value.trim_start_matches('"').trim_end_matches('"');
        assert!(text.contains(shown) || name == "Backend" || reason.contains("above"), "{text}");
    }
    assert!(error("").starts_with("the network config is not a JSON object"));
    assert!(error("[]").starts_with("the network config is not a JSON object"));
    assert!(error(r#"{"Network":"10.3.0.0/16"} x"#).starts_with("the network config is not"));
}

#[test]
fn ipv6_is_refused_by_name() {
    assert_eq!(
        error(r#"{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48"}"#),
        "network config: EnableIPv6 (dual stack) is not served yet"
    );
    assert!(error(r#"{"EnableIPv4":false,"EnableIPv6":true}"#).contains("IPv6-only network is not served"));
}

#[test]
fn a_port_must_be_one() {
    let zero = r#"{"Network":"10.3.0.0/16","Backend":{"Type":"udp","Port":0}}"#;
    assert_eq!(Config::parse(zero).unwrap().backend.port(), Ok(0), "flannel takes it");
    for port in ["65536", "-1", "1.5", r#""8285""#] {
        let text = format!(r#"{{"Network":"10.3.0.0/16","Backend":{{"Type":"udp","Port":{port}}}}}"#);
        let error = Config::parse(&text).unwrap().backend.port().unwrap_err().to_string();
        assert!(error.contains(&format!("Backend.Port {port}:")), "{error}");
    }
}

#[test]
fn only_subnets_of_the_config_fit() {
    let config = Config::parse(r#"{"Network":"10.3.0.0/16","SubnetMax":"10.3.9.0"}"#).unwrap();
    let fits = |text: &str| config.fits(text.parse().unwrap());
    assert!(fits("10.3.1.0/24") && fits("10.3.9.0/24"));
    assert!(!fits("10.3.0.0/24") && !fits("10.3.10.0/24") && !fits("10.3.1.0/25") && !fits("10.3.1.1/24"));
}

proptest::proptest! {
    #[test]
    fn every_accepted_config_is_sound(addr: u32, prefix in 0u8..=32, len: Option<u8>, min: Option<u32>, max: Option<u32>) {
        let mut object = serde_json::json!({"Network": format!("{}/{prefix}", Ipv4Addr::from(addr))});
        object["SubnetLen"] = len.map(|len| len % 34).into();
        for (field, value) in [("SubnetMin", min), ("SubnetMax", max)] {
            if let Some(value) = value {
                // Most bounds are inside the network and on a /24 boundary.
                let inside = (addr & !0xFFFF) | (value & if value & 1 == 0 { 0xFF00 } else { 0xFFFF });
                object[field] = Ipv4Addr::from(inside).to_string().into();
            }
        }
        if let Ok(c) = Config::parse(&object.to_string()) {
            let min = Ipv4Net::new(c.subnet_min, c.subnet_len).unwrap();
            let max = Ipv4Net::new(c.subnet_max, c.subnet_len).unwrap();
            assert!(c.fits(min) && c.fits(max) && c.network.contains(&min) && c.network.contains(&max));
            assert!(c.subnet_len <= 30 && c.subnet_len >= c.network.prefix_len() + 2 && c.pool() >= 1);
        }
    }
}
