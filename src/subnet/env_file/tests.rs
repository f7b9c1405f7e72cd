//! The file is checked byte for byte.

use super::*;
use proptest::prelude::*;
use std::os::unix::fs::PermissionsExt;

const TEXT: &str =
    "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.5.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n";

fn file() -> EnvFile {
    EnvFile {
        network: "10.1.0.0/16".parse().unwrap(),
        subnet: "10.1.5.0/24".parse().unwrap(),
        mtu: 1472,
        ip_masq: true,
    }
}

#[test]
fn the_text_is_flannels() {
    assert_eq!(file().text(), TEXT);
    assert_eq!(EnvFile::parse(TEXT), Some(file()));
}

#[test]
fn a_subnet_off_the_boundary_is_read_back_as_it_is() {
    let odd = EnvFile { subnet: "10.1.5.7/24".parse().unwrap(), ..file() };
    assert!(odd.text().contains("FLANNEL_SUBNET=10.1.5.8/24\n"), "{}", odd.text());
    assert_eq!(EnvFile::parse(&odd.text()), Some(odd));
    let edge = EnvFile { subnet: "10.1.5.255/24".parse().unwrap(), ..file() };
    assert_eq!(EnvFile::parse(&edge.text()), Some(file()));
}

#[test]
fn it_is_replaced_whole_in_a_directory_that_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run/flannel/subnet.env");
    assert_eq!(EnvFile::read(&path).unwrap(), None);
    file().write(&path).unwrap();
    let other = EnvFile { mtu: 8973, ip_masq: false, ..file() };
    other.write(&path).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), other.text());
    assert_eq!(EnvFile::read(&path).unwrap(), Some(other));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
    assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o755);
    let left: Vec<_> =
        fs::read_dir(path.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["subnet.env"]);
}

#[test]
fn a_planted_temporary_is_neither_followed_nor_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("subnet.env");
    let temporary = dir.path().join(format!(".subnet.env.{}", std::process::id()));
    let victim = dir.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    fs::set_permissions(&victim, fs::Permissions::from_mode(0o600)).unwrap();
    let plants: [(&str, &dyn Fn()); 3] = [
        ("link to a file", &|| std::os::unix::fs::symlink(&victim, &temporary).unwrap()),
        ("hard link", &|| fs::hard_link(&victim, &temporary).unwrap()),
        ("link to nothing", &|| std::os::unix::fs::symlink(dir.path().join("new"), &temporary).unwrap()),
    ];
    for (what, plant) in plants {
        plant();
        file().write(&path).unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious", "{what}");
        assert_eq!(fs::metadata(&victim).unwrap().permissions().mode() & 0o777, 0o600, "{what}");
        let written = fs::symlink_metadata(&path).unwrap();
        assert!(written.is_file() && written.permissions().mode() & 0o777 == 0o644, "{what}: {written:?}");
        assert_eq!(fs::read_to_string(&path).unwrap(), TEXT, "{what}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "{what}: something was left or made");
    }
    // A file that cannot be removed stays, and is an error.
    fs::create_dir(&temporary).unwrap();
    let error = file().write(&path).unwrap_err().to_string();
    assert!(error.starts_with("cannot create "), "{error}");
    assert!(temporary.is_dir());
}

#[test]
fn errors_name_the_path_and_keep_the_old_file() {
    let dir = tempfile::tempdir().unwrap();
    let blocker = dir.path().join("file");
    fs::write(&blocker, "x").unwrap();
    let error = file().write(&blocker.join("sub/subnet.env")).unwrap_err().to_string();
    assert!(error.starts_with("cannot create ") && error.contains("file/sub"), "{error}");
    let target = dir.path().join("directory");
    fs::create_dir_all(target.join("full")).unwrap();
    let error = file().write(&target).unwrap_err().to_string();
    assert!(error.starts_with("cannot replace ") && error.contains("directory"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "the temporary file is still there");
    assert!(EnvFile::read(&target).unwrap_err().to_string().contains("cannot read"));
}

#[test]
fn dotenv_is_tolerated() {
    let text = "# note\n\nexport FLANNEL_NETWORK=\"10.1.0.0/16\"\n FLANNEL_SUBNET = '10.1.5.1/24' \n\
        FLANNEL_IPV6_SUBNET=fc00::1/64\nOTHER\nFLANNEL_MTU=9\nFLANNEL_MTU=1472\r\nFLANNEL_IPMASQ=true";
    assert_eq!(EnvFile::parse(text), Some(file()));
}

#[test]
fn a_bad_file_is_no_file() {
    let bad = [
        ("10.1.5.1/24", "10.1.5.1/24,10.1.6.1/24"),
        ("10.1.5.1/24", "10.1.5.1"),
        ("10.1.5.1/24", "10.1.5.1/33"),
        ("10.1.5.1/24", ""),
        ("10.1.5.1/24", "fc00::1/64"),
        ("10.1.0.0/16", "10.1.0.0"),
        ("1472", "-1"),
        ("true", "tru"),
        ("FLANNEL_SUBNET", "SUBNET"),
    ];
    for (from, to) in bad {
        assert_eq!(EnvFile::parse(&TEXT.replace(from, to)), None, "{to}");
    }
    for cut in 0..TEXT.len() - 1 {
        assert_eq!(EnvFile::parse(&TEXT[..cut]), None, "half a file: {:?}", &TEXT[..cut]);
    }
}

proptest! {
    #[test]
    fn any_file_survives(net: u32, net_len in 0u8..=32, sub: u32, sub_len in 0u8..=30, mtu: u32, ip_masq: bool) {
        let file = EnvFile {
            network: Ipv4Net::new(net.into(), net_len).unwrap().trunc(),
            subnet: Ipv4Net::new(sub.into(), sub_len).unwrap().trunc(),
            mtu,
            ip_masq,
        };
        prop_assert_eq!(EnvFile::parse(&file.text()), Some(file));
    }

    #[test]
    fn no_text_makes_it_panic(text in "\\PC*") {
        let _ = EnvFile::parse(&text);
    }
}
