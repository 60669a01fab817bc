use super::*;

#[test]
fn a_request_has_the_size_and_the_checksum_that_it_should() {
    let small = request(Family::V4, 0x0102_0304, None);
    assert_eq!(small.len(), HEADER + DATA);
    assert_eq!(small[..2], [8, 0]);
    assert_eq!(small[4..8], [1, 2, 3, 4]);
    // The sum over all of it, its checksum included, is zero (RFC 1071).
    assert_eq!(checksum(&small), 0);
    assert_eq!(request(Family::V4, 1, Some(1500)).len(), 1480);
    assert_eq!(request(Family::V6, 1, Some(1500)).len(), 1460);
    assert_eq!(checksum(&request(Family::V4, 9, Some(1499))), 0);
}

const TARGET: [u8; 4] = [10, 0, 1, 11];

/// An IPv4 packet of ICMP to the target, with options.
fn v4(message: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 24];
    packet[0] = 0x46;
    packet[9] = 1;
    packet[16..20].copy_from_slice(&TARGET);
    packet.extend(message);
    packet
}

#[test]
fn replies_and_errors_are_read_and_nothing_else() {
    let sent = request(Family::V4, 77, None);
    let mut reply = sent.clone();
    reply[0] = 0;
    assert_eq!(
        Heard::read(Family::V4, &v4(&reply)),
        Some(Heard::Reply {
            number: 77,
            data: &sent[HEADER..]
        })
    );
    assert_eq!(Heard::read(Family::V4, &v4(&sent)), None, "a request");
    let error = [&[3, 1, 0, 0, 0, 0, 0, 0][..], &v4(&sent)[..32]].concat();
    let heard = Some(Heard::Error {
        number: 77,
        target: TARGET.into(),
        kind: 3,
        code: 1,
    });
    assert_eq!(Heard::read(Family::V4, &v4(&error)), heard);
    // About somebody's UDP.
    let mut udp = error.clone();
    udp[HEADER + 9] = 17;
    assert_eq!(Heard::read(Family::V4, &v4(&udp)), None);
    for length in 0..v4(&error).len() {
        assert_eq!(
            Heard::read(Family::V4, &v4(&error)[..length]),
            None,
            "{length}"
        );
        assert_eq!(
            Heard::read(Family::V6, &v4(&error)[..length]),
            None,
            "{length}"
        );
    }
    let sent = request(Family::V6, 78, None);
    let mut quoted = vec![0; 40];
    quoted[6] = 58;
    quoted[39] = 1;
    quoted.extend(&sent);
    let error = [&[1, 3, 0, 0, 0, 0, 0, 0][..], &quoted].concat();
    assert_eq!(
        Heard::read(Family::V6, &error),
        Some(Heard::Error {
            number: 78,
            target: "::1".parse().unwrap(),
            kind: 1,
            code: 3
        })
    );
}

#[test]
fn only_the_host_that_was_asked_can_answer() {
    let waiting = Waiting::default();
    let (answer, mut answered) = oneshot::channel();
    let data = b"data".to_vec();
    let target = IpAddr::from(TARGET);
    let waiter = Waiter {
        target,
        data: data.clone(),
        answer,
    };
    waiting.all().insert(5, waiter);
    let reply = |number, data| Heard::Reply { number, data };
    tell(&waiting, "10.9.9.9".parse().unwrap(), &reply(5, b"data"));
    tell(&waiting, target, &reply(6, b"data"));
    tell(&waiting, target, &reply(5, b"other"));
    assert!(answered.try_recv().is_err());
    tell(&waiting, target, &reply(5, b"data"));
    assert_eq!(answered.try_recv(), Ok(Answer::Reply));
    assert!(waiting.all().is_empty());
}
