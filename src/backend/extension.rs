//! The `extension` backend: the operator's own commands make the network.
//!
//! `PreStartupCommand` runs before there is a lease; what it prints is published as `BackendData`.
//! `PostStartupCommand` runs with the lease. `SubnetAddCommand` and `SubnetRemoveCommand` run for each peer, with
//! what that peer published on their standard input, one after the other in a thread of their own. The file
//! `command.rs` beside this one says how a command line is read.

use super::command::Command;
use super::strangers::{Strangers, Unusable};
use super::{Backend, BackendError, Network, Setup};
use crate::iface::External;
use crate::netlink::Netlink;
use crate::report::{DataPath, Sample, metric};
use crate::subnet::{BackendData, Event, Lease, LeaseAttrs};
use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, ready};
use ipnet::Ipv4Net;
use serde_json::Value;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use tracing::{debug, info, warn};

/// The `Backend.Type` by which flannel names this backend.
pub(super) const KIND: &str = "extension";

/// The `extension` backend as configured; its first command has run.
#[derive(Debug, Clone)]
pub(super) struct Config {
    network: Ipv4Net,
    mtu: u32,
    post_startup: Option<String>,
    subnet_add: Option<String>,
    subnet_remove: Option<String>,
    attrs: LeaseAttrs,
}

impl Config {
    /// Reads the commands of the network config, and runs `PreStartupCommand`.
    pub(super) async fn configure(setup: Setup<'_>) -> Result<Config, BackendError> {
        let Setup { config, external, .. } = setup;
        let command = |name: &str| {
            let line = config.backend.field::<String>(name)?;
            Ok::<_, BackendError>(line.filter(|line| !line.trim().is_empty()))
        };
        let backend_data = match command("PreStartupCommand")? {
            Some(line) => {
                let command = Command { line, variables: Vec::new(), input: String::new() };
                Some(Value::String(command.run().await?).into())
            }
            None => None,
        };
        Ok(Config {
            network: config.network,
            mtu: external.mtu,
            post_startup: command("PostStartupCommand")?,
            subnet_add: command("SubnetAddCommand")?,
            subnet_remove: command("SubnetRemoveCommand")?,
            attrs: LeaseAttrs {
                backend_type: Some(KIND.to_owned()),
                backend_data,
                // flannel publishes the interface's address here, whatever -public-ip says.
                ..LeaseAttrs::new(external.address)
            },
        })
    }

    /// Runs `PostStartupCommand` with the subnet that was leased.
    async fn post_startup(&self, subnet: Ipv4Net) -> Result<(), BackendError> {
        let Some(line) = self.post_startup.clone() else { return Ok(()) };
        let variables = vec![
            ("NETWORK", self.network.to_string()),
            ("SUBNET", subnet.to_string()),
            ("IPV6SUBNET", String::new()),
            ("PUBLIC_IP", self.attrs.public_ip.to_string()),
            ("PUBLIC_IPV6", String::new()),
        ];
        let output = Command { line, variables, input: String::new() }.run().await?;
        info!("PostStartupCommand: {output}");
        Ok(())
    }
}

impl Backend for Config {
    fn attrs(&self) -> &LeaseAttrs {
        &self.attrs
    }

    fn mtu(&self) -> u32 {
        self.mtu
    }

    /// The operator's commands are not run again: what they have made is theirs to change.
    fn follow(&self, external: &External) -> Result<Rc<dyn Backend>, BackendError> {
        let attrs = LeaseAttrs { public_ip: external.address, ..self.attrs.clone() };
        Ok(Rc::new(Config { attrs, ..self.clone() }))
    }

    fn register<'a>(
        &'a self,
        _netlink: &'a Netlink,
        subnet: Ipv4Net,
    ) -> LocalBoxFuture<'a, Result<Box<dyn Network>, BackendError>> {
        Commands::start(self.clone(), subnet).map(super::boxed).boxed_local()
    }
}

/// The `extension` backend at work.
#[derive(Debug)]
struct Commands {
    config: Config,
    /// The way to the thread that runs the commands. When this is dropped, the thread runs what is left and ends.
    queue: Sender<Command>,
    /// The peers' leases as they were added, since a removal needs the same data.
    peers: BTreeMap<Ipv4Net, Lease>,
    strangers: Strangers,
    unusable: Unusable,
    failures: Arc<AtomicU64>,
}

impl Commands {
    async fn start(config: Config, subnet: Ipv4Net) -> Result<Commands, BackendError> {
        config.post_startup(subnet).await?;
        let (queue, commands) = mpsc::channel();
        let failures = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&failures);
        thread::Builder::new()
            .name("fl-extension".to_owned())
            .spawn(move || work(&commands, &count))
            .map_err(BackendError::Thread)?;
        Ok(Commands {
            config,
            queue,
            peers: BTreeMap::new(),
            strangers: Strangers::default(),
            unusable: Unusable::default(),
            failures,
        })
    }

    fn added(&mut self, lease: &Lease) {
        let kind = lease.attrs.backend_type.as_deref();
        if !kind.is_some_and(|kind| kind.eq_ignore_ascii_case(KIND)) {
            self.removed(lease.subnet);
            self.strangers.add(lease);
            return;
        }
        self.strangers.remove(lease.subnet);
        self.unusable.remove(lease.subnet);
        if self.enqueue(self.config.subnet_add.clone(), lease) {
            self.peers.insert(lease.subnet, lease.clone());
        }
    }

    fn removed(&mut self, subnet: Ipv4Net) {
        self.strangers.remove(subnet);
        self.unusable.remove(subnet);
        if let Some(lease) = self.peers.remove(&subnet) {
            self.enqueue(self.config.subnet_remove.clone(), &lease);
        }
    }

    /// Queues the command `line` for a peer; false if the peer's data are not what an extension node publishes.
    fn enqueue(&mut self, line: Option<String>, lease: &Lease) -> bool {
        let data = match lease.attrs.backend_data.as_ref().map(BackendData::value) {
            Some(Value::String(text)) => text,
            None => String::new(),
            Some(_) => {
                self.unusable.add(lease, "BackendData is no string");
                return false;
            }
        };
        let Some(line) = line else { return true };
        let variables =
            vec![("SUBNET", lease.subnet.to_string()), ("PUBLIC_IP", lease.attrs.public_ip.to_string())];
        let command = Command { line, variables, input: format!("{data}\n") };
        // The receiver lives as long as the thread, and the thread as long as this sender.
        let _ = self.queue.send(command);
        true
    }
}

impl Network for Commands {
    fn apply(&mut self, events: &[Event]) {
        for event in events {
            match event {
                Event::Added(lease) => self.added(lease),
                Event::Removed(lease) => self.removed(lease.subnet),
            }
        }
        self.strangers.tell(KIND);
        self.unusable.tell(KIND);
    }

    fn report<'a>(&'a self, _netlink: &'a Netlink) -> LocalBoxFuture<'a, Option<DataPath>> {
        let mut samples = self.strangers.samples().to_vec();
        samples.extend([
            self.unusable.sample(),
            Sample::new(&metric::FAILED_COMMANDS, "failed_commands", self.failures.load(Ordering::Relaxed)),
        ]);
        ready(Some(DataPath { workers: Vec::new(), peers: self.peers.len(), samples })).boxed_local()
    }
}

/// Runs commands in order until nobody can send any more.
fn work(commands: &Receiver<Command>, failures: &AtomicU64) {
    for command in commands {
        match command.run_blocking() {
            Ok(output) => debug!("{:?}: {output}", command.line),
            Err(error) => {
                failures.fetch_add(1, Ordering::Relaxed);
                warn!("{error}");
            }
        }
    }
}
