//! The SMTP check: passes when a mail server is ready to take mail.

use tokio::io::{
    AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _,
    BufReader,
};

use super::{
    Found, Verdict,
    probe::{Failure, Outcome},
    tcp,
    tls::{self, Configs},
    trace::Trace,
    way::Destination,
};
use crate::model::Smtp;

/// Bytes of one reply at most, all of its lines together.
const MOST_REPLY: u64 = 64 << 10;

/// "Service not available": the server has too much to do, or is about to stop
/// (RFC 5321 §4.2.3).
const NOT_NOW: u16 = 421;

/// Reads the greeting, sends EHLO, and goes on over TLS where asked to.
///
/// # Errors
/// The server isn't ready, or is none.
pub async fn probe(to: Destination, smtp: &Smtp, configs: &Configs, trace: &Trace) -> Outcome {
    let config = match &smtp.starttls {
        Some(tls) => Some((tls, configs.of(tls).await.map_err(Failure::Ours)?)),
        None => None,
    };
    let mut stream = BufReader::new(tcp::connect(to, trace).await?);
    trace.step("connected, waiting for the greeting");
    let greeting = reply(&mut stream).await?;
    if greeting.code == NOT_NOW {
        return Ok(Found::new(Verdict::Overloaded, greeting.to_string()));
    }
    greeting.expect(220)?;
    trace.step("waiting for the answer to EHLO");
    let hello = format!("EHLO {}\r\n", smtp.helo);
    ask(&mut stream, &hello).await?.expect(250)?;
    let Some((tls, config)) = config else {
        return goodbye(&mut stream, &greeting).await;
    };
    trace.step("waiting for the answer to STARTTLS");
    ask(&mut stream, "STARTTLS\r\n").await?.expect(220)?;
    // What came before the handshake was not protected by it (RFC 3207 §4.2).
    if !stream.buffer().is_empty() {
        return Err(Failure::Wrong(
            "it said more than the answer to STARTTLS".into(),
        ));
    }
    let name = (tls.server_name.as_deref(), to.address.ip());
    let stream = tls::connect(stream.into_inner(), config, name, &[], trace).await?;
    let mut stream = BufReader::new(stream);
    trace.step("waiting for the answer to EHLO over TLS");
    ask(&mut stream, &hello).await?.expect(250)?;
    goodbye(&mut stream, &greeting).await
}

/// Its answer doesn't matter any more.
async fn goodbye(stream: &mut (impl AsyncWrite + Unpin), greeting: &Reply) -> Outcome {
    stream.write_all(b"QUIT\r\n").await?;
    stream.flush().await?;
    Ok(Found::new(Verdict::Pass, greeting.to_string()))
}

struct Reply {
    code: u16,
    text: String,
}

impl std::fmt::Display for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.code, self.text)
    }
}

impl Reply {
    fn expect(&self, code: u16) -> Result<(), Failure> {
        if self.code == code {
            return Ok(());
        }
        Err(Failure::Wrong(format!("{self}; expected {code}")))
    }
}

async fn ask(
    stream: &mut (impl AsyncBufRead + AsyncWrite + Unpin),
    command: &str,
) -> Result<Reply, Failure> {
    stream.write_all(command.as_bytes()).await?;
    stream.flush().await?;
    reply(stream).await
}

/// One or more lines with the same code; all but the last have a hyphen after
/// it (RFC 5321 §4.2.1). The text is the last one's.
async fn reply(stream: &mut (impl AsyncBufRead + Unpin)) -> Result<Reply, Failure> {
    let mut limited = stream.take(MOST_REPLY);
    loop {
        let mut line = Vec::new();
        if limited.read_until(b'\n', &mut line).await? == 0 || line.last() != Some(&b'\n') {
            return Err(Failure::Wrong(
                "the connection was closed, or went on for too long, before the reply was complete"
                    .into(),
            ));
        }
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end();
        let (code, rest) = line.split_at_checked(3).unwrap_or((line, ""));
        let code = code.parse().map_err(|_| {
            let start: String = line.chars().take(40).collect();
            Failure::Wrong(format!("not an SMTP reply: {start:?}"))
        })?;
        if !rest.starts_with('-') {
            let text = rest.trim_start().chars().take(80).collect();
            return Ok(Reply { code, text });
        }
    }
}

#[cfg(test)]
#[path = "smtp_tests.rs"]
mod tests;
