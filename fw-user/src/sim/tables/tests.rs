use fw_common::abi::Family;

use fw_common::datapath::tables::{InsertError, Tables, Tier};

use super::*;
use crate::sim::HostDevice;

fn key(port: u16) -> FlowKey {
    FlowKey {
        ports: FlowKey::ports_of(port, 0),
        ..FlowKey::default()
    }
}

fn small() -> HostTables {
    let capacities = Capacities {
        flows4: 1,
        flows6: 1,
        embryos: 2,
        fragments: 2,
    };
    HostTables::with_capacities(Host::default(), capacities)
}

fn place(tables: &HostTables, port: u16) -> Option<bool> {
    Some(tables.state().flows.get(&key(port))?.embryo)
}

#[test]
fn a_full_confirmed_tier_sends_flows_to_the_embryos_and_counts_it() {
    let tables = small();
    let flow = Flow::default();
    assert_eq!(tables.insert_flow(&key(1), &flow, Tier::Confirmed), Ok(()));
    assert_eq!(
        tables.insert_flow(&key(1), &flow, Tier::Embryo),
        Err(InsertError::Exists)
    );
    assert_eq!(tables.insert_flow(&key(2), &flow, Tier::Confirmed), Ok(()));
    assert_eq!(place(&tables, 1), Some(false));
    assert_eq!(place(&tables, 2), Some(true));
    assert_eq!(tables.stat(Stat::FlowTableFull), 1);
    let promoted = tables.promote_flow(&key(2), &flow);
    assert_eq!(promoted, Err(InsertError::Full));
    tables.remove_flow(&key(1));
    assert_eq!(tables.promote_flow(&key(2), &flow), Ok(()));
    assert_eq!(place(&tables, 2), Some(false));
}

#[test]
fn one_stranger_of_those_that_share_a_place_is_early() {
    let tables = HostTables::new(Host::default());
    let mut ports = (1..).filter(|port| key(*port).place() == key(1).place());
    let [one, two, three] = [(); 3].map(|()| ports.next().expect("there are enough"));
    let insert = |port| {
        let flow = Flow::default();
        flow.status.set(Flow::EMBRYO);
        assert_eq!(tables.insert_flow(&key(port), &flow, Tier::Early), Ok(()));
        flow.status.get() & Flow::EARLY != 0
    };
    assert!(insert(one));
    assert!(!insert(two));
    assert_eq!(place(&tables, one), Some(false));
    assert_eq!(place(&tables, two), Some(true));
    assert!(tables.remove_flow(&key(one)));
    tables.free_place(&key(one));
    assert!(insert(three));
    assert_eq!(place(&tables, three), Some(false));
}

#[test]
fn the_least_recently_used_embryo_leaves() {
    let tables = small();
    let flow = Flow::default();
    for port in [1, 2] {
        assert_eq!(tables.insert_flow(&key(port), &flow, Tier::Embryo), Ok(()));
    }
    assert!(tables.flow(&key(1)).is_some());
    assert_eq!(tables.insert_flow(&key(3), &flow, Tier::Embryo), Ok(()));
    assert_eq!(place(&tables, 1), Some(true));
    assert_eq!(place(&tables, 2), None);
    assert_eq!(place(&tables, 3), Some(true));
}

#[test]
fn a_removed_flow_stays_readable_to_who_found_it() {
    let tables = small();
    let flow = Flow {
        nat_device: 7,
        ..Flow::default()
    };
    assert_eq!(tables.insert_flow(&key(1), &flow, Tier::Confirmed), Ok(()));
    let found = tables.flow(&key(1)).expect("just stored");
    found.expires.set(9);
    assert_eq!(tables.flow(&key(1)).map(|flow| flow.expires.get()), Some(9));
    tables.remove_flow(&key(1));
    assert_eq!(tables.flow(&key(1)), None);
    assert_eq!((found.nat_device, found.expires.get()), (7, 9));
}

#[test]
fn own_broadcast_and_multicast_addresses_are_local() {
    let host = Host {
        devices: vec![HostDevice::loopback()],
        broadcast: Vec::new(),
        local: [
            "192.0.2.1/32",
            "192.0.2.255/32",
            "2001:db8::1/128",
            "127.0.0.0/8",
        ]
        .map(|prefix| prefix.parse().expect("a prefix"))
        .to_vec(),
        ..Host::default()
    };
    let tables = HostTables::new(host);
    let is_local = |text: &str| {
        let address: std::net::IpAddr = text.parse().expect("an address");
        let family = if address.is_ipv4() {
            Family::V4
        } else {
            Family::V6
        };
        tables.is_local(family, &addr::to_abi(address))
    };
    for local in [
        "192.0.2.1",
        "192.0.2.255",
        "127.1.2.3",
        "224.0.0.251",
        "2001:db8::1",
        "ff02::1",
    ] {
        assert!(is_local(local), "{local}");
    }
    for other in ["192.0.2.2", "2001:db8::2"] {
        assert!(!is_local(other), "{other}");
    }
}
