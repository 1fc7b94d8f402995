#![allow(clippy::unwrap_used)]

use super::*;
use std::time::Instant;
use tokio::net::TcpStream;

fn address(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

fn gate(limits: (usize, usize, usize)) -> Gate {
    let pressures = Pressures::default();
    let budgets = Budgets::new(pressures.clone());
    Gate::new("test", Activity::Requests, limits, &budgets, &pressures)
}

fn counts(gate: &Gate) -> (usize, usize) {
    let state = gate.0.lock();
    (state.unattached.len(), state.attached)
}

#[test]
fn the_idlest_connection_makes_room_and_those_in_use_do_not() {
    let gate = gate((2, 3, 100));
    let first = gate.admit(address(1)).unwrap();
    let second = gate.admit(address(1)).unwrap();
    let busy = first.begin();
    // The second is the only idle one of this address.
    let third = gate.admit(address(1)).unwrap();
    assert!(second.next_check().is_err() && first.next_check().is_ok());
    let also_busy = third.begin();
    assert!(gate.admit(address(1)).is_none(), "both are in use");
    // One was closed for another, and one was refused.
    let pressure = gate.0.pressures.now().remove(0);
    assert_eq!(
        (pressure.excess, pressure.address, pressure.count),
        (Excess::Connections, Some(address(1)), 2)
    );
    // Another address is admitted, until there are too many in all.
    let other = gate.admit(address(2)).unwrap();
    drop(also_busy);
    let newest = gate.admit(address(3)).unwrap();
    assert!(other.next_check().is_err(), "it never made a request");
    assert!(third.next_check().is_ok() && newest.next_check().is_ok());
    drop(busy);
    assert_eq!(counts(&gate), (3, 0));
}

#[test]
fn an_attached_worker_does_not_count_and_is_never_closed_for_others() {
    let gate = gate((1, 2, 3));
    let worker = gate.admit(address(1)).unwrap();
    let attachment = worker.attach().unwrap();
    assert!(worker.attach().is_none(), "one worker for a connection");
    assert_eq!(counts(&gate), (0, 1));
    let second = gate.admit(address(1)).unwrap();
    let _attached = second.attach().unwrap();
    let third = gate.admit(address(1)).unwrap();
    let _busy = third.begin();
    assert!(gate.admit(address(2)).is_none(), "no descriptor is left");
    assert!(worker.next_check().is_ok());
    drop(attachment);
    assert_eq!(counts(&gate), (2, 1));
}

#[test]
fn all_ipv6_addresses_of_one_network_are_one_sender() {
    for (address, expected) in [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("::1", "::1"),
        ("2001:db8:0:1:2:3:4:5", "2001:db8:0:1::"),
        ("2001:db8:0:1:ffff::", "2001:db8:0:1::"),
        ("2001:db8:0:2::1", "2001:db8:0:2::"),
    ] {
        let expected: IpAddr = expected.parse().unwrap();
        assert_eq!(sender(address.parse().unwrap()), expected, "{address}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_is_closed_after_ten_seconds() {
    use tokio::io::AsyncReadExt;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let gate = gate((2, 2, 2));
    let mut connection = gate.accept(&listener).await;
    // The clock of `Use` is not paused.
    connection.peer.lock().since = Instant::now() - FIRST_WITHIN;
    let error = connection.read_u8().await.unwrap_err();
    assert_eq!(error.to_string(), "it made no request within 10 s");
    drop(connection);
    assert_eq!(counts(&gate), (0, 0));
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn bytes_are_paid_for_unless_an_attached_worker_sends_them() {
    let gate = gate((2, 2, 2));
    let peer = gate.admit(address(1)).unwrap();
    peer.received(1_000_000);
    let paid = CONNECTION + Duration::from_millis(2);
    assert_eq!(gate.0.budgets.used(address(1)), paid);
    let _attached = peer.attach().unwrap();
    peer.received(1_000_000);
    assert_eq!(gate.0.budgets.used(address(1)), paid);
}
