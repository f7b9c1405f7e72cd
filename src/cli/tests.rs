//! The command line as a table, and the rules of its syntax.

mod store;

use super::flags::{FLAGS, Kind, Standing};
use super::*;
use crate::daemon::settings as engine;
use crate::lease::OnLost;
use crate::masq;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

/// The settings, or exit code and text.
fn run(words: &[&str], env: &[(&str, &str)]) -> Result<Settings, (u8, String)> {
    let args = std::iter::once("flanneld").chain(words.iter().copied()).map(OsString::from);
    let lookup =
        |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
    match parse(args, lookup) {
        Parsed::Run { settings, .. } => Ok(*settings),
        Parsed::Exit { code, stderr } => Err((code, stderr)),
    }
}

fn shown(result: Result<Settings, (u8, String)>) -> String {
    format!("{:#?}", result.unwrap())
}

fn refused(words: &[&str], env: &[(&str, &str)]) -> (u8, String) {
    let (code, text) = run(words, env).expect_err("a refusal");
    assert_ne!(code, 0, "{text}");
    assert_eq!(text.matches('\n').count(), 1, "one line: {text:?}");
    assert!(text.ends_with('\n'));
    (code, text)
}

/// Served flags: name, a value that changes the options, a bad value with its exit code (if any value
/// is bad), and what must stand beside the flag.
type Row<'a> = (&'a str, &'a str, Option<(&'a str, u8)>, &'a [&'a str]);

const SERVED: &[Row<'_>] = &[
    ("etcd-endpoints", "http://192.0.2.1:2379", Some(("ftp://192.0.2.1", 1)), &[]),
    ("etcd-prefix", "/other", Some((" ", 1)), &[]),
    ("etcd-keyfile", "/proc/version", Some(("/no/such/file", 1)), &["-etcd-certfile=/proc/version"]),
    ("etcd-certfile", "/proc/version", Some(("/no/such/file", 1)), &["-etcd-keyfile=/proc/version"]),
    ("etcd-cafile", "/proc/version", Some(("/no/such/file", 1)), &[]),
    ("etcd-username", "u", None, &[]),
    ("etcd-password", "secret", None, &["-etcd-username=u"]),
    ("iface", "eth0", None, &[]),
    ("iface-regex", "^192", Some(("(", 1)), &[]),
    ("iface-can-reach", "192.0.2.1", Some(("fe80::1", 1)), &[]),
    ("public-ip", "192.0.2.1", Some(("here", 1)), &[]),
    ("subnet-file", "/tmp/x.env", Some((" ", 1)), &[]),
    ("subnet-lease-renew-margin", "1439", Some(("1440", 1)), &[]),
    ("ip-masq", "true", Some(("yes", 2)), &[]),
    ("ip-masq-fully-random-disable", "true", Some(("yes", 2)), &[]),
    ("iptables-forward-rules", "false", Some(("no", 2)), &[]),
    ("iptables-resync", "7", Some(("-1", 2)), &[]),
    ("ip-blackhole-route", "true", Some(("yes", 2)), &[]),
    ("networks", "a, b", Some(("a/b", 1)), &[]),
    ("watch-networks", "true", Some(("yes", 2)), &[]),
    ("subnet-dir", "/tmp/x", Some((" ", 1)), &["-networks=a"]),
    ("healthz-ip", "::1", Some(("he/re", 1)), &["-healthz-port=1"]),
    ("healthz-port", "8285", Some(("65536", 2)), &[]),
    ("v", "1", Some(("x", 2)), &[]),
    ("engine", "poll", Some(("epoll", 2)), &[]),
    ("workers", "2", Some(("257", 2)), &[]),
    ("cores", "0,2-3", Some(("3-2", 2)), &[]),
    ("batch", "1", Some(("0", 2)), &[]),
    ("buffers", "4", Some(("3", 2)), &[]),
    ("spin", "20us", Some(("11ms", 2)), &[]),
    ("moderation", "0", Some(("2ms", 2)), &[]),
    ("receive-buffer", "262144", Some(("1000", 2)), &[]),
    ("send-buffer", "262144", Some(("1000", 2)), &[]),
    ("tun-offload", "tso", Some(("uso", 2)), &[]),
    ("udp-offload", "send", Some(("on", 2)), &[]),
    ("source-port", "one", Some(("two", 2)), &[]),
    ("peer-filter", "inner", Some(("on", 2)), &[]),
    ("etcd-api", "v3", Some(("v4", 2)), &[]),
    ("etcd-password-file", "/proc/version", Some(("/no/such/file", 1)), &["-etcd-username=u"]),
    ("etcd-timeout", "500ms", Some(("0", 2)), &[]),
    ("lease-ttl", "90m", Some(("1s", 2)), &[]),
    ("state-dir", "/tmp/x", None, &[]),
    ("env-file", "-/no/such/file", Some(("/no/such/file", 1)), &[]),
    ("node-id", "rack-7", Some(("a b", 1)), &[]),
    ("force-takeover", "true", Some(("yes", 2)), &[]),
    ("cleanup-on-exit", "true", Some(("yes", 2)), &[]),
    ("port-guard", "false", Some(("maybe", 2)), &[]),
    ("on-lease-lost", "keep", Some(("panic", 2)), &[]),
];

#[test]
fn the_table_names_every_served_flag() {
    let in_table: Vec<_> = SERVED.iter().map(|row| row.0).collect();
    let served =
        FLAGS.iter().filter(|f| matches!(f.standing, Standing::Flannel | Standing::Ours) || f.name == "v");
    let served: Vec<_> = served.map(|f| f.name).filter(|name| !matches!(*name, "help" | "version")).collect();
    assert_eq!(in_table, served);
}

#[test]
fn every_served_flag_has_its_effect_in_every_form() {
    for (name, value, _, beside) in SERVED {
        let without = run(beside, &[]).map(|o| format!("{o:?}")).unwrap_or_default();
        let (one, two) = (format!("-{name}"), format!("--{name}"));
        // A boolean does not take the next word.
        let (one_with, two_with) = (format!("{one}={value}"), format!("{two}={value}"));
        let is_bool = FLAGS.iter().any(|flag| flag.name == *name && flag.kind == Kind::Bool);
        let forms: [&[&str]; 4] = match *value {
            "true" if is_bool => [&[&one_with], &[&two_with], &[&one], &[&two]],
            _ if is_bool => [&[&one_with], &[&two_with], &[&one, &two_with], &[&two, &one_with]],
            _ => [&[&one_with], &[&two_with], &[&one, value], &[&two, value]],
        };
        let results: Vec<_> = forms.iter().map(|form| shown(run(&[beside, *form].concat(), &[]))).collect();
        assert!(results.iter().all(|one| *one == results[0]), "-{name}: {results:?}");
        let from_env = shown(run(beside, &[(&variable(name), &format!(" {value} "))]));
        if *name == "etcd-password" {
            // A password is neither shown nor trimmed: see the tests on passwords.
            continue;
        }
        assert_eq!(from_env, results[0], "{name} in the environment");
        // These two have their effect by what the file says.
        if !matches!(*name, "etcd-password-file" | "env-file") {
            let with = format!("{:?}", run(&[beside, forms[0]].concat(), &[]).unwrap());
            assert_ne!(with, without, "-{name} has no effect");
        }
    }
}

#[test]
fn the_command_line_wins_over_the_environment() {
    for (name, value, bad, beside) in SERVED {
        let typed = format!("-{name}={value}");
        let words = [beside, [typed.as_str()].as_slice()].concat();
        let other = bad.map_or("other", |(text, _)| text);
        assert_eq!(shown(run(&words, &[(&variable(name), other)])), shown(run(&words, &[])), "-{name}");
    }
    let typed = run(&["-iface=a"], &[("FLANNELD_IFACE", "b,c")]).unwrap();
    assert_eq!(typed.iface.names, ["a"]);
    let env = run(&[], &[("FLANNELD_IFACE", "b,c")]).unwrap();
    assert_eq!(env.iface.names, ["b,c"]);
}

#[test]
fn a_bad_value_is_refused_by_name() {
    for (name, _, bad, beside) in SERVED {
        let Some((bad, expected)) = bad else { continue };
        let typed = format!("-{name}={bad}");
        let (code, text) = refused(&[beside, [typed.as_str()].as_slice()].concat(), &[]);
        assert_eq!(code, *expected, "{text}");
        assert!(text.contains(&format!("-{name}")), "{text}");
        if !bad.trim().is_empty() {
            let (code, text) = refused(beside, &[(&variable(name), bad)]);
            assert_eq!(code, *expected, "{text}");
            assert!(text.contains(&variable(name)), "{text}");
        }
    }
}

#[test]
fn what_is_not_served_is_refused_unless_it_does_nothing() {
    let plain = shown(run(&[], &[]));
    for flag in FLAGS {
        let Standing::NotServed(inactive, _) = flag.standing else { continue };
        let typed = |value: &str| format!("--{}={value}", flag.name);
        for value in inactive {
            assert_eq!(shown(run(&[&typed(value)], &[])), plain, "{}", typed(value));
            assert_eq!(shown(run(&[], &[(&variable(flag.name), value)])), plain, "{}", typed(value));
        }
        let active: &[&str] = match flag.kind {
            Kind::Bool => &["true", "false"],
            Kind::Int(..) => &["7"],
            _ => &["http://user:hunter2@192.0.2.1"],
        };
        for value in active.iter().filter(|value| !inactive.contains(value)) {
            let (code, text) = refused(&[&typed(value)], &[]);
            assert_eq!(code, 2);
            assert!(
                text.contains(&format!("-{}", flag.name)) && text.contains("not supported yet: "),
                "{text}"
            );
            assert!(!text.contains("hunter2"), "{text}");
            let (code, text) = refused(&[], &[(&variable(flag.name), value)]);
            assert_eq!(code, 2);
            assert!(text.contains(&variable(flag.name)), "{text}");
        }
    }
    assert!(refused(&["-kube-subnet-mgr"], &[]).1.contains("-kube-subnet-mgr=true"));
}

#[test]
fn what_flannel_takes_for_an_address_and_for_a_period_is_taken() {
    let served = |words: &[&str]| run(words, &[]).unwrap().status.map(|address| address.to_string());
    assert_eq!(
        served(&["-healthz-port=8471", "-healthz-ip=node-7.example"]),
        Some("node-7.example:8471".into())
    );
    assert_eq!(served(&["-healthz-port=8471", "-healthz-ip=localhost"]), Some("localhost:8471".into()));
    assert_eq!(served(&["-healthz-port=8471", "-healthz-ip="]), Some("0.0.0.0:8471".into()));
    assert_eq!(served(&["-healthz-port=8471", "-healthz-ip=::1"]), Some("[::1]:8471".into()));
    assert_eq!(served(&["-healthz-ip=node-7.example"]), None);
    assert_eq!(run(&["-iptables-resync=0"], &[]).unwrap().masq.resync, Duration::from_secs(1));
}

#[test]
fn logging_flags_of_flannel_are_taken() {
    let plain = shown(run(&[], &[]));
    let words = [
        "-logtostderr",
        "-alsologtostderr",
        "-stderrthreshold=INFO",
        "-log_dir",
        "/tmp",
        "-vmodule=main=2",
        "-log_backtrace_at=main.go:1",
    ];
    assert_eq!(shown(run(&words, &[])), plain);
    assert_eq!(run(&["-v=-3"], &[]).unwrap().log.v, 0);
    assert_eq!(run(&["-v=1000"], &[]).unwrap().log.v, 255);
    assert_eq!(run(&["-v", "0x2"], &[]).unwrap().log.v, 2);
}

#[test]
fn logging_flags_without_effect_are_remarked_upon_and_never_fatal() {
    let remarks = |words: &[&str], env: &[(&str, &str)]| {
        let args = std::iter::once("flanneld").chain(words.iter().copied()).map(OsString::from);
        let env =
            |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
        match parse(args, env) {
            Parsed::Run { remarks, .. } => remarks,
            Parsed::Exit { stderr, .. } => panic!("{stderr}"),
        }
    };
    for words in [&[][..], &["-logtostderr"], &["-logtostderr=true", "-alsologtostderr", "-v=4"]] {
        assert_eq!(remarks(words, &[]), Vec::<String>::new(), "{words:?}");
    }
    let idle = |name: &str| format!("{name} has no effect: the log goes to stderr");
    let words = ["--logtostderr=false", "--log_dir=/var/log", "-stderrthreshold=WARNING", "-vmodule=a=2"];
    let said = ["-vmodule", "-logtostderr", "-stderrthreshold", "-log_dir"].map(idle);
    assert_eq!(remarks(&words, &[]), said);
    assert_eq!(remarks(&[], &[("FLANNELD_LOGTOSTDERR", "false")]), [idle("FLANNELD_LOGTOSTDERR")]);
}

#[test]
fn booleans_never_take_the_next_word() {
    let (code, text) = refused(&["-ip-masq", "true"], &[]);
    assert_eq!(code, 2);
    assert!(text.contains("argument 2 (after -ip-masq) is no flag"), "{text}");
    for literal in ["0", "f", "F", "false", "FALSE", "False"] {
        assert!(!run(&[&format!("-ip-masq={literal}")], &[]).unwrap().masq.masquerade, "{literal}");
    }
    for literal in ["1", "t", "T", "true", "TRUE", "True"] {
        assert!(run(&[&format!("-ip-masq={literal}")], &[]).unwrap().masq.masquerade, "{literal}");
    }
    for literal in ["", "yes", "no", "tRUE", " true"] {
        let (code, text) = refused(&[&format!("-ip-masq={literal}")], &[]);
        assert_eq!(code, 2);
        assert!(text.contains("invalid value"), "{text}");
    }
}

#[test]
fn other_flags_take_the_next_word_whatever_it_is() {
    assert_eq!(run(&["-iface", "-v"], &[]).unwrap().iface.names, ["-v"]);
    assert_eq!(run(&["-etcd-prefix", "--"], &[]).unwrap().etcd.prefix, "--");
    assert_eq!(run(&["-subnet-file=a=b"], &[]).unwrap().subnet_file.to_str(), Some("a=b"));
    let (code, text) = refused(&["-iface"], &[]);
    assert_eq!((code, text.as_str()), (2, "flanneld: flag needs an argument: -iface\n"));
}

#[test]
fn stray_words_and_bad_syntax_are_refused_without_quoting_them() {
    let lines: [&[&str]; 9] = [
        &["hunter2"],
        &["-"],
        &["--", "hunter2"],
        &["---v=hunter2"],
        &["-=hunter2"],
        &["--=hunter2"],
        &["-v=1", "hunter2", "-v=2"],
        &["-etcd-pasword=hunter2"],
        &["-etcd-password hunter2"],
    ];
    for words in lines {
        let (code, text) = refused(words, &[]);
        assert_eq!(code, 2, "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
    assert!(run(&["-v=1", "--"], &[]).is_ok());
}

#[test]
fn an_unknown_flag_is_named_with_the_nearest_known_one() {
    let (_, text) = refused(&["--etcd-endpoint", "http://192.0.2.1:2379"], &[]);
    assert_eq!(
        text,
        "flanneld: flag provided but not defined: -etcd-endpoint; did you mean -etcd-endpoints?\n"
    );
    let (_, text) = refused(&["-zzzzqqqq"], &[]);
    assert!(text.contains("-zzzzqqqq; try -help"), "{text}");
    let args = [OsString::from("flanneld"), OsString::from("-iface"), OsString::from_vec(vec![0xff])];
    let Parsed::Exit { code: 2, stderr } = parse(args.into_iter(), |_| None) else { panic!("refused") };
    assert!(stderr.contains("UTF-8"), "{stderr}");
    let garbled = |name: &str| (name == "FLANNELD_IFACE").then(|| OsString::from_vec(vec![b'e', 0xff]));
    let args = [OsString::from("flanneld")];
    let Parsed::Exit { code: 2, stderr } = parse(args.into_iter(), garbled) else { panic!("refused") };
    assert_eq!(stderr, "flanneld: FLANNELD_IFACE is not valid UTF-8\n");
}

#[test]
fn the_last_of_a_repeated_flag_wins_but_interfaces_accumulate() {
    let words =
        ["-v=1", "-v=2", "-iface=a", "-iface", "192.0.2.1", "-iface=", "-iface-regex=x", "-iface-regex=y"];
    let options = run(&words, &[]).unwrap();
    assert_eq!(options.log.v, 2);
    assert_eq!(options.iface.names, ["a", "192.0.2.1"]);
    let patterns: Vec<_> = options.iface.regexes.iter().map(regex::Regex::as_str).collect();
    assert_eq!(patterns, ["x", "y"]);
    assert!(run(&["-ip-masq=false", "-ip-masq"], &[]).unwrap().masq.masquerade);
    assert!(!run(&["-ip-masq", "-ip-masq=false"], &[]).unwrap().masq.masquerade);
}

#[test]
fn version_and_help_end_well_and_before_the_environment() {
    let broken = [("FLANNELD_V", "x"), ("FLANNELD_VERSION", "true"), ("FLANNELD_HELP", "true")];
    assert_eq!(run(&["-version"], &broken).err(), Some((0, format!("{VERSION}\n"))));
    assert_eq!(run(&["--version=true", "-v=1"], &broken).err(), Some((0, format!("{VERSION}\n"))));
    assert!(run(&["-version=false"], &[("FLANNELD_VERSION", "true")]).is_ok());
    assert_eq!(refused(&["-version", "-v=x"], &[]).0, 2);
    for word in ["-h", "--h", "-help", "--help"] {
        let (code, text) = run(&["-v=1", word], &broken).expect_err("usage");
        assert_eq!(code, 0);
        assert!(text.starts_with("Usage: flanneld [OPTION]...\n"), "{text}");
        for flag in FLAGS {
            assert!(text.contains(&format!("--{}", flag.name)), "-{} is not in the usage", flag.name);
        }
    }
    let (code, text) = run(&["-zzz", "-help"], &[]).expect_err("a refusal");
    assert_eq!(code, 2, "{text}");
}

#[test]
fn blank_variables_count_as_unset() {
    let plain = shown(run(&[], &[]));
    for flag in FLAGS {
        assert_eq!(shown(run(&[], &[(&variable(flag.name), "  ")])), plain, "{}", flag.name);
    }
    assert_eq!(variable("log_backtrace_at"), "FLANNELD_LOG_BACKTRACE_AT");
    assert_eq!(variable("etcd-endpoints"), "FLANNELD_ETCD_ENDPOINTS");
}

#[test]
fn passwords_are_exact_and_never_shown() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), " hunter2 \nmore\n").unwrap();
    let path = file.path().to_str().unwrap();
    let user = "-etcd-username=u";
    let typed = run(&[user, "-etcd-password", " hunter2 "], &[]).unwrap();
    let env = run(&[user], &[("FLANNELD_ETCD_PASSWORD", " hunter2 ")]).unwrap();
    let read = run(&[user, "--etcd-password-file", path], &[]).unwrap();
    for options in [typed, env, read] {
        assert!(!format!("{options:?}").contains("hunter2"));
        assert_eq!(options.etcd.credentials.unwrap().password.read().as_deref(), Ok(" hunter2 "));
    }
    assert!(run(&["-etcd-password="], &[]).unwrap().etcd.credentials.is_none());
    let url = "-etcd-endpoints=http://u:hunter2@192.0.2.1:2379";
    let lines: [&[&str]; 7] = [
        &["-etcd-password=hunter2"],
        &[url, "-v=x"],
        &["-etcd-endpoints=ftp://u:hunter2@192.0.2.1"],
        &["-etcd-endpoints=http://:hunter2@192.0.2.1"],
        &["-etcd-endpoints=http://u:hun/ter2@192.0.2.1"],
        &[user, "-etcd-password=hunter2", "-etcd-password-file", path],
        &[user, "-etcd-password=hunter2", "-v=x"],
    ];
    for words in lines {
        let (_, text) = refused(words, &[]);
        assert!(!text.contains("hunter2") && !text.contains("ter2@"), "{text}");
    }
    let (_, help) = run(&["-etcd-password=hunter2", "-help"], &[]).expect_err("usage");
    assert!(!help.contains("hunter2"));
}

#[test]
fn the_renew_margin_fits_into_the_lease() {
    let lease = |words: &[&str]| run(words, &[]).unwrap().lease;
    let default = lease(&[]);
    assert_eq!(
        (default.ttl(), default.renew_margin()),
        (Duration::from_secs(86_400), Duration::from_secs(3600))
    );
    assert_eq!(default.on_lost, OnLost::Exit);
    assert_eq!(lease(&["-lease-ttl=10"]).renew_margin(), Duration::from_secs(5));
    assert_eq!(lease(&["-lease-ttl=90m"]).renew_margin(), Duration::from_secs(45 * 60));
    assert_eq!(refused(&["-lease-ttl=2500ms"], &[]).0, 1);
    assert_eq!(lease(&["-lease-ttl=2h", "-subnet-lease-renew-margin=0x1e"]).renew_margin().as_secs(), 1800);
    assert_eq!(refused(&["-lease-ttl=30m", "-subnet-lease-renew-margin=30"], &[]).0, 1);
    for margin in ["0", "-1", "1440"] {
        assert_eq!(refused(&["-subnet-lease-renew-margin", margin], &[]).0, 1);
    }
}

#[test]
fn the_engines_settings_are_what_was_typed() {
    assert_eq!(run(&[], &[]).unwrap().engine, engine::Engine::default());
    let words = [
        "--workers=3",
        "--cores=4,0-1",
        "--batch=8",
        "--buffers=32",
        "--engine=uring",
        "--tun-offload=off",
        "--udp-offload=receive",
        "--peer-filter=off",
    ];
    let expected = engine::Engine {
        workers: Some(3),
        cores: vec![4, 0, 1],
        reads_per_turn: 8,
        buffers: 32,
        carrier: engine::Carrier::Uring,
        tun_offload: engine::TunOffload::Off,
        udp_offload: engine::UdpOffload::Receive,
        peer_filter: engine::PeerFilter::Off,
        ..engine::Engine::default()
    };
    assert_eq!(run(&words, &[]).unwrap().engine, expected);
    assert_eq!(run(&["-workers=auto"], &[]).unwrap().engine.workers, None);
}

#[test]
fn rules_are_flannels_unless_asked_otherwise() {
    assert_eq!(run(&[], &[]).unwrap().masq, masq::Settings::default());
    let words = [
        "-ip-masq",
        "-ip-masq-fully-random-disable",
        "-iptables-forward-rules=false",
        "--port-guard=false",
        "-iptables-resync",
        "60",
        "-ip-blackhole-route",
        "--cleanup-on-exit",
    ];
    let expected = masq::Settings {
        masquerade: true,
        random_fully: false,
        forward: false,
        guard: false,
        resync: Duration::from_secs(60),
        blackhole: true,
        cleanup_on_exit: true,
    };
    assert_eq!(run(&words, &[]).unwrap().masq, expected);
}

#[test]
fn numbers_durations_and_cores_have_their_forms() {
    for (text, number) in [
        ("10", 10),
        ("+10", 10),
        ("-10", -10),
        ("0x1F", 31),
        ("017", 15),
        ("0o17", 15),
        ("0b11", 3),
        ("1_000", 1000),
    ] {
        assert_eq!(value::int(text, -10, 1000), Ok(number), "{text}");
    }
    for text in
        ["", "-", "0x", "08", "1.5", "1e3", "--1", "0x-1", "+-1", "99999999999999999999", "1001", " 1"]
    {
        assert!(value::int(text, -10, 1000).is_err(), "{text}");
    }
    let time = |text| value::duration(text, Duration::ZERO, Duration::from_secs(1 << 20));
    for (text, millis) in
        [("90", 90_000), ("90s", 90_000), ("1h30m", 5_400_000), ("500ms", 500), ("24h", 86_400_000)]
    {
        assert_eq!(time(text), Ok(Duration::from_millis(millis)), "{text}");
    }
    for text in ["", "s", "-1s", "1h30", "1d", "1 h", "1.5h", "999999999h", "18446744073709551615h", "é"] {
        assert!(time(text).is_err(), "{text}");
    }
    assert_eq!(value::cores("0, 2-4,1"), Ok(vec![0, 2, 3, 4, 1]));
    for text in ["a", "1,", "1,1", "0-2,1", "2-1", "1024", "-1", "0-18446744073709551615"] {
        assert!(value::cores(text).is_err(), "{text}");
    }
}
