//! Which NodeID this host has: the given one, else the one that the state directory keeps, else one that is derived
//! from the machine id.

use super::StateDir;
use crate::lease::Identity;
use crate::subnet::{LeaseAttrs, NodeId};
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::pkey::PKey;
use openssl::sign::Signer;
use rand::TryRng;
use rand::rngs::SysRng;
use std::fs;
use tracing::{info, warn};

/// The file in the state directory.
const FILE: &str = "node-id";
/// Where the machine id stands, as systemd and D-Bus have it.
const MACHINE_ID: [&str; 2] = ["/etc/machine-id", "/var/lib/dbus/machine-id"];
/// What makes the derived id ours alone: the machine id itself is not to be shown to others (machine-id(5)). The
/// derivation is systemd's, so `systemd-id128 machine-id --app-specific=33a0142585af63a5cd235bfc140410ae` gives the
/// same digits, but for the ten bits that make them a UUID there.
const APPLICATION: u128 = 0x33a0_1425_85af_63a5_cd23_5bfc_1404_10ae;

/// The names of this host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeNames {
    /// The name that is published; `None` if there is nothing to take it from.
    pub own: Option<NodeId>,
    /// The name that is derived from the machine id, under which an earlier run may have published.
    pub of_machine: Option<NodeId>,
}

impl NodeNames {
    /// The names of this host. `given` is the operator's choice. A state directory that cannot be written is no reason
    /// to fail: then the machine id has to do.
    pub fn find(given: Option<&NodeId>, state: Option<&StateDir>) -> NodeNames {
        let derived = machine_id().map(of_machine).transpose().inspect_err(|error| {
            warn!("cannot derive a node id from the machine id: {error}");
        });
        let of_machine = derived.unwrap_or_default();
        let own = given.cloned().or_else(|| state.and_then(kept)).or_else(|| of_machine.clone());
        match &own {
            Some(own) => info!("Node id: {own}"),
            None => warn!(
                "no node id: give one with --node-id, or a --state-dir that keeps one; until then another host with \
                 our public IP is not told apart from us"
            ),
        }
        NodeNames { own, of_machine }
    }

    /// Who we are in the store, if we publish `attrs` under our name.
    pub fn identity(&self, attrs: &LeaseAttrs) -> Identity {
        Identity::new(LeaseAttrs { node_id: self.own.clone(), ..attrs.clone() }, self.of_machine.clone())
    }
}

/// The name in the state directory. If there is none, or none that makes sense, a new one is drawn and kept.
fn kept(state: &StateDir) -> Option<NodeId> {
    match state.read(FILE) {
        Ok(Some(bytes)) => match String::from_utf8_lossy(&bytes).trim().parse::<NodeId>() {
            Ok(id) => return Some(id),
            Err(error) => warn!("the state directory's {FILE} makes no sense ({error}); drawing a new one"),
        },
        Ok(None) => {}
        Err(error) => {
            warn!("{error}: taking the node id from the machine id");
            return None;
        }
    }
    let mut bits = [0; 16];
    if let Err(error) = SysRng.try_fill_bytes(&mut bits) {
        warn!("cannot draw a random node id: {error}");
        return None;
    }
    let id = NodeId::random(u128::from_be_bytes(bits));
    match state.write(FILE, format!("{id}\n").as_bytes()) {
        Ok(()) => Some(id),
        Err(error) => {
            // A name that is forgotten at the end would make the next run a stranger to this one's lease.
            warn!("{error}: taking the node id from the machine id");
            None
        }
    }
}

/// The machine id; `None` if this machine has none (yet).
fn machine_id() -> Option<u128> {
    let texts = MACHINE_ID.iter().filter_map(|path| fs::read_to_string(path).ok());
    texts.filter_map(|text| parse_machine_id(&text)).next()
}

/// 32 hexadecimal digits that are not all zero: what machine-id(5) allows.
fn parse_machine_id(text: &str) -> Option<u128> {
    let digits = text.trim();
    let is_id = digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    u128::from_str_radix(digits, 16).ok().filter(|id| is_id && *id != 0)
}

/// The name for a machine id: HMAC-SHA256 of our constant, with the machine id as the key, cut to 128 bits.
fn of_machine(machine_id: u128) -> Result<NodeId, ErrorStack> {
    let key = PKey::hmac(&machine_id.to_be_bytes())?;
    let tag = Signer::new(MessageDigest::sha256(), &key)?.sign_oneshot_to_vec(&APPLICATION.to_be_bytes())?;
    let bytes = tag.iter().take(16);
    Ok(NodeId::of_machine(bytes.fold(0, |hash, byte| hash << 8 | u128::from(*byte))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_name_is_drawn_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let first = NodeNames::find(None, Some(&state));
        let own = first.own.clone().unwrap();
        assert!(!own.is_of_machine() && own.as_str().len() == 32, "{own}");
        assert_eq!(NodeNames::find(None, Some(&state)), first);
        assert_eq!(fs::read_to_string(dir.path().join(FILE)).unwrap(), format!("{own}\n"));
        // An operator's choice goes before it and leaves it alone.
        let given = "rack-7".parse().unwrap();
        assert_eq!(NodeNames::find(Some(&given), Some(&state)).own, Some(given));
        assert_eq!(NodeNames::find(None, Some(&state)).own, Some(own.clone()));
        // A file that makes no sense is replaced, one that cannot be read is left alone.
        for garbage in ["", "a b", "machine-7", "\u{0}"] {
            fs::write(dir.path().join(FILE), garbage).unwrap();
            let anew = NodeNames::find(None, Some(&state)).own.unwrap();
            assert!(anew != own && !anew.is_of_machine(), "{anew}");
            assert_eq!(NodeNames::find(None, Some(&state)).own, Some(anew));
        }
        fs::remove_file(dir.path().join(FILE)).unwrap();
        fs::create_dir(dir.path().join(FILE)).unwrap();
        let names = NodeNames::find(None, Some(&state));
        assert_eq!(names.own, names.of_machine);
    }

    #[test]
    fn a_machine_id_is_hashed_and_never_shown() {
        let text = "0123456789abcdef0123456789abcdef\n";
        let id = parse_machine_id(text).unwrap();
        let name = of_machine(id).unwrap();
        // printf %s 33a0142585af63a5cd235bfc140410ae | xxd -r -p |
        //   openssl dgst -sha256 -mac HMAC -macopt hexkey:0123456789abcdef0123456789abcdef | cut -c1-32
        assert_eq!(name.as_str(), "machine-bd83569a31c1d16f92467abd960970f2");
        for odd in ["", "uninitialized\n", "0123", &"0".repeat(32), &"+".repeat(32)] {
            assert_eq!(parse_machine_id(odd), None, "{odd:?}");
        }
    }

    #[test]
    fn the_derivation_is_systemds() {
        let Some(id) = machine_id() else { return };
        let application = format!("--app-specific={APPLICATION:032x}");
        let Ok(output) = Command::new("systemd-id128").args(["machine-id", &application]).output() else {
            return;
        };
        let Ok(theirs) = u128::from_str_radix(String::from_utf8_lossy(&output.stdout).trim(), 16) else {
            return;
        };
        let ours = u128::from_str_radix(&of_machine(id).unwrap().as_str()["machine-".len()..], 16).unwrap();
        // systemd makes a UUID of version 4 of it.
        let uuid = !(0xf << 76 | 0x3 << 62);
        assert_eq!(format!("{:032x}", ours & uuid), format!("{:032x}", theirs & uuid));
    }
}
