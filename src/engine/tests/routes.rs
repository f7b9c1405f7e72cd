//! Commands of the control thread between turns.

use super::*;

impl Bench {
    fn command(&mut self, command: RouteCommand) {
        self.commands.send(Command::Route(command)).unwrap();
        self.step();
    }

    /// Where a packet for 10.1.9.3 goes now.
    fn goes_to(&mut self) -> Option<SocketAddrV4> {
        self.port().sent.clear();
        self.reads(&outgoing(10).build()).settle();
        self.packets_sent().first().map(|(to, _)| *to)
    }
}

#[test]
fn the_next_packet_takes_the_new_route() {
    let mut bench = Bench::new();
    assert_eq!(bench.goes_to(), Some(NINE));
    bench.command(RouteCommand::Del { subnet: net("10.1.9.0/24") });
    assert_eq!(bench.goes_to(), None);
    assert_eq!(bench.dropped(DropReason::NoRoute), 1);
    bench.command(set("10.1.9.0/24", SEVEN));
    assert_eq!(bench.goes_to(), Some(SEVEN));
    bench.command(set("10.1.9.0/24", NINE));
    assert_eq!(bench.goes_to(), Some(NINE));
    bench.command(set("10.1.9.2/31", STRANGER));
    assert_eq!(bench.goes_to(), Some(STRANGER));
    assert_eq!((bench.count(Count::RouteChanges), bench.count(Count::RouteErrors)), (4, 0));
}

#[test]
fn a_refused_change_is_counted_and_changes_nothing() {
    let mut bench = Bench::new();
    bench.command(set("10.2.0.0/24", SEVEN));
    bench.command(RouteCommand::Del { subnet: net("10.1.9.0/25") });
    assert_eq!((bench.count(Count::RouteChanges), bench.count(Count::RouteErrors)), (0, 2));
    assert_eq!(bench.goes_to(), Some(NINE));
}

#[test]
fn the_filter_follows_the_routes() {
    let mut bench = Bench::new();
    let packet = incoming(10).build();
    bench.receives(NINE, &packet).settle();
    assert_eq!(bench.packets_written().len(), 1);
    bench.command(set("10.1.9.0/24", STRANGER));
    bench.receives(NINE, &packet).receives(STRANGER, &packet).settle();
    assert_eq!((bench.packets_written().len(), bench.dropped(DropReason::UnknownPeer)), (2, 1));
    bench.command(RouteCommand::Del { subnet: net("10.1.9.0/24") });
    bench.receives(STRANGER, &packet).receives(SEVEN, &packet).settle();
    assert_eq!(bench.packets_written().len(), 2);
    assert_eq!((bench.dropped(DropReason::UnknownPeer), bench.dropped(DropReason::InnerSource)), (2, 1));
}

/// What is left of a super-packet whose route goes away meanwhile still has a peer.
#[test]
fn a_change_in_the_middle_of_a_super_packet() {
    let mut bench = Bench::with(&Settings::default(), ALL, Limits { enabled: false, ..LIMITS });
    let spec = Spec { source: [10, 1, 5, 2], destination: [10, 1, 9, 3], ..Spec::tcp(ramp(50_000)) };
    bench.port().frames.push_back(super_frame(&spec, 500));
    bench.step();
    assert_eq!(bench.packets_sent().len(), 32);
    bench.command(RouteCommand::Del { subnet: net("10.1.9.0/24") });
    bench.settle();
    assert_eq!(bench.packets_sent().len(), 100);
    assert!(bench.packets_sent().iter().all(|(to, _)| *to == NINE));
    assert_eq!(bench.goes_to(), None);
}

#[test]
fn commands_in_a_burst_are_all_carried_out_before_the_next_packet() {
    let mut bench = Bench::new();
    bench.reads(&outgoing(10).build());
    for n in 0..60 {
        let address = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, n), 8285);
        bench.commands.send(Command::Route(set("10.1.9.0/24", address))).unwrap();
    }
    bench.step();
    assert_eq!(bench.packets_sent()[0].0.ip().octets(), [198, 51, 100, 59]);
}

#[test]
fn a_stop_and_a_lost_control_thread_both_end_the_loop() {
    let mut bench = Bench::new();
    bench.commands.send(Command::Route(set("10.1.8.0/24", NINE))).unwrap();
    bench.commands.send(Command::Stop).unwrap();
    assert!(!bench.worker.obey());
    assert_eq!(bench.count(Count::RouteChanges), 1);
    let Bench { mut worker, commands, .. } = Bench::new();
    drop(commands);
    assert!(!worker.obey());
}
