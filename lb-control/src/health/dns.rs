//! The DNS check: passes when a name server answers as expected.

use hickory_proto::{
    op::{Message, MessageType, Query},
    rr::{Name, RecordType},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{
    Found, Verdict,
    probe::{Failure, Outcome},
    tcp,
    trace::Trace,
    way::Destination,
};
use crate::model::Dns;

/// Asks the question and judges the answer.
///
/// # Errors
/// There is no answer, or not the expected one.
pub async fn probe(to: Destination, dns: &Dns, trace: &Trace) -> Outcome {
    let question = question(dns).map_err(Failure::Ours)?;
    let bytes = question
        .to_vec()
        .map_err(|error| Failure::Ours(error.to_string()))?;
    let answer = if dns.tcp {
        over_tcp(to, &bytes, trace).await?
    } else {
        over_udp(to, &question, &bytes, trace).await?
    };
    judge(dns, &question, &answer)
}

fn question(dns: &Dns) -> Result<Message, String> {
    let mut name = Name::from_ascii(&dns.query).map_err(|error| error.to_string())?;
    // A question has no search list: what it names is always the whole.
    name.set_fqdn(true);
    let record: RecordType = dns
        .record
        .parse()
        .map_err(|_| format!("there is no record type {:?}", dns.record))?;
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, record));
    Ok(message)
}

async fn over_udp(
    to: Destination,
    question: &Message,
    bytes: &[u8],
    trace: &Trace,
) -> Result<Vec<u8>, Failure> {
    let socket = to.udp()?;
    trace.step("waiting for the answer");
    socket.send(bytes).await?;
    let mut answer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut answer).await?;
        // Whatever answers something else may be a late or a forged answer.
        let id = question.metadata.id.to_be_bytes();
        if answer.get(..2) == Some(&id) {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

/// Two bytes of length before each message (RFC 1035 §4.2.2).
async fn over_tcp(to: Destination, bytes: &[u8], trace: &Trace) -> Result<Vec<u8>, Failure> {
    let length = u16::try_from(bytes.len()).map_err(|error| Failure::Ours(error.to_string()))?;
    let mut stream = tcp::connect(to, trace).await?;
    trace.step("connected, waiting for the answer");
    stream
        .write_all(&[&length.to_be_bytes()[..], bytes].concat())
        .await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

fn judge(dns: &Dns, question: &Message, bytes: &[u8]) -> Outcome {
    let answer = Message::from_vec(bytes)
        .map_err(|error| Failure::Wrong(format!("not a DNS message: {error}")))?;
    if answer.metadata.message_type != MessageType::Response
        || answer.metadata.id != question.metadata.id
        || answer.queries != question.queries
    {
        return Err(Failure::Wrong("the answer is to another question".into()));
    }
    let code = u16::from(answer.metadata.response_code);
    let words = format!(
        "{}, {} records",
        answer.metadata.response_code,
        answer.answers.len()
    );
    if !dns.codes.contains(&code) {
        return Err(Failure::Wrong(words));
    }
    if code == 0 && answer.answers.len() < usize::from(dns.min_answers) {
        return Err(Failure::Wrong(format!(
            "{words}; expected {} or more",
            dns.min_answers
        )));
    }
    if let Some(wanted) = &dns.answer {
        let mut data = answer.answers.iter().map(|record| record.data.to_string());
        if !data.any(|found| found == *wanted) {
            return Err(Failure::Wrong(format!("{words}, and none is {wanted:?}")));
        }
    }
    Ok(Found::new(Verdict::Pass, words))
}

#[cfg(test)]
#[path = "dns_tests.rs"]
mod tests;
