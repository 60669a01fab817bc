use std::net::{Ipv4Addr, SocketAddr};

use hickory_proto::{
    op::ResponseCode,
    rr::{RData, Record, rdata::A},
};
use tokio::net::{TcpListener, UdpSocket};

use super::*;
use crate::{health::testing::probe_once, model::CheckKind};

fn check(change: impl FnOnce(&mut Dns)) -> CheckKind {
    let mut dns = Dns {
        query: "shop.example".into(),
        record: "A".into(),
        tcp: false,
        codes: vec![0],
        min_answers: 1,
        answer: None,
    };
    change(&mut dns);
    CheckKind::Dns(Box::new(dns))
}

/// An answer with one address, or what `change` makes of it.
fn answer(question: &[u8], change: impl FnOnce(&mut Message)) -> Vec<u8> {
    let mut message = Message::from_vec(question).unwrap();
    message.metadata.message_type = MessageType::Response;
    let name = message.queries[0].name().clone();
    let data = RData::A(A(Ipv4Addr::new(192, 0, 2, 7)));
    message.answers.push(Record::from_rdata(name, 60, data));
    change(&mut message);
    message.to_vec().unwrap()
}

async fn server(change: impl FnOnce(&mut Message) + Send + 'static) -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
        // A forged answer before the real one is passed over.
        socket.send_to(&[0xff; 20], from).await.unwrap();
        let answer = answer(&buffer[..length], change);
        socket.send_to(&answer, from).await.unwrap();
    });
    address
}

async fn of(kind: CheckKind, change: impl FnOnce(&mut Message) + Send + 'static) -> Found {
    probe_once(kind, server(change).await).await
}

#[tokio::test]
async fn an_address_is_an_answer_and_nothing_is_none() {
    let found = of(check(|_| {}), |_| {}).await;
    assert_eq!(found, Found::new(Verdict::Pass, "No Error, 1 records"));
    let empty = of(check(|_| {}), |message| message.answers.clear()).await;
    assert_eq!(
        empty,
        Found::new(
            Verdict::WrongAnswer,
            "No Error, 0 records; expected 1 or more"
        )
    );
    let any = check(|dns| dns.min_answers = 0);
    let found = of(any, |message| message.answers.clear()).await;
    assert_eq!(found.verdict, Verdict::Pass);
}

#[tokio::test]
async fn code_and_data_are_what_the_check_says() {
    let refused = |message: &mut Message| {
        message.metadata.response_code = ResponseCode::Refused;
        message.answers.clear();
    };
    assert_eq!(
        of(check(|_| {}), refused).await.verdict,
        Verdict::WrongAnswer
    );
    let expected = check(|dns| dns.codes = vec![0, 5]);
    assert_eq!(of(expected, refused).await.verdict, Verdict::Pass);
    let wanted = |data: &str| {
        let data = data.to_owned();
        check(move |dns| dns.answer = Some(data))
    };
    assert_eq!(of(wanted("192.0.2.7"), |_| {}).await.verdict, Verdict::Pass);
    assert_eq!(
        of(wanted("192.0.2.8"), |_| {}).await.words,
        "No Error, 1 records, and none is \"192.0.2.8\""
    );
}

#[tokio::test]
async fn an_answer_to_something_else_is_none() {
    let other = of(check(|_| {}), |message| {
        message.queries[0].set_name(Name::from_ascii("other.example.").unwrap());
    })
    .await;
    assert_eq!(
        other,
        Found::new(Verdict::WrongAnswer, "the answer is to another question")
    );
    let question = of(check(|_| {}), |message| {
        message.metadata.message_type = MessageType::Query;
    })
    .await;
    assert_eq!(question.verdict, Verdict::WrongAnswer);
}

#[tokio::test]
async fn over_tcp_the_length_comes_first() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        for truncated in [false, true] {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut question = vec![0; usize::from(stream.read_u16().await.unwrap())];
            stream.read_exact(&mut question).await.unwrap();
            let answer = answer(&question, |_| {});
            stream.write_u16(answer.len() as u16).await.unwrap();
            let end = if truncated { 5 } else { answer.len() };
            stream.write_all(&answer[..end]).await.unwrap();
        }
    });
    let kind = || check(|dns| dns.tcp = true);
    assert_eq!(probe_once(kind(), address).await.verdict, Verdict::Pass);
    let found = probe_once(kind(), address).await;
    assert_eq!(found.verdict, Verdict::WrongAnswer, "{found:?}");
    task.await.unwrap();
}
