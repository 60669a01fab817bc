//! The SNMP check: a number is read as the server's load.

use std::{
    collections::HashMap,
    fs,
    net::SocketAddr,
    path::Path,
    sync::{Mutex, PoisonError},
};

use snmp2::{
    AsyncSession, Error, Oid, Value,
    v3::{Auth, AuthProtocol, Cipher, KeyExtension, Security},
};

use super::{
    Found, Verdict,
    load::Load,
    probe::{Failure, Outcome},
    trace::Trace,
};
use crate::model::{Snmp, SnmpAccess, SnmpAuthentication, SnmpPrivacy};

/// Sessions that worked last time: the next probe need not ask whom it talks to,
/// nor make keys of passwords, which is a million bytes of hashing each (RFC 3414
/// §A.2).
#[derive(Default)]
pub struct Sessions(Mutex<HashMap<(SocketAddr, Snmp), AsyncSession>>);

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sessions")
    }
}

impl Sessions {
    /// Has passwords be read again.
    pub fn forget(&self) {
        self.known().clear();
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<(SocketAddr, Snmp), AsyncSession>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the object and makes a load of it.
///
/// # Errors
/// There is no answer, or no number.
pub async fn probe(target: SocketAddr, snmp: &Snmp, sessions: &Sessions, trace: &Trace) -> Outcome {
    let oid = Oid::from(&snmp.oid)
        .map_err(|error| Failure::Ours(format!("the OID makes no sense: {error:?}")))?;
    let key = (target, snmp.clone());
    let known = sessions.known().remove(&key);
    if let Some(mut session) = known {
        trace.step("waiting for the value");
        // A restart of the agent makes keys and clocks old: then all anew.
        if let Ok(value) = read(&mut session, &oid).await {
            sessions.known().insert(key, session);
            return judge(snmp, &value?);
        }
    }
    let mut session = open(target, snmp, trace).await?;
    trace.step("waiting for the value");
    let value = match read(&mut session, &oid).await {
        // The first answer tells the agent's clock.
        Err(Error::AuthUpdated) => read(&mut session, &oid).await,
        other => other,
    };
    let value = value.map_err(|error| failure(&error))?;
    if matches!(snmp.access, SnmpAccess::User { .. }) {
        sessions.known().insert(key, session);
    }
    judge(snmp, &value?)
}

async fn open(target: SocketAddr, snmp: &Snmp, trace: &Trace) -> Result<AsyncSession, Failure> {
    match &snmp.access {
        SnmpAccess::Community(community) => {
            Ok(AsyncSession::new_v2c(target, community.0.as_bytes(), 1).await?)
        }
        SnmpAccess::User {
            user,
            authentication,
            privacy,
        } => {
            let files = (authentication.clone(), privacy.clone());
            let user = user.clone();
            let security = tokio::task::spawn_blocking(move || security(&user, files))
                .await
                .map_err(|error| Failure::Ours(error.to_string()))?
                .map_err(Failure::Ours)?;
            let mut session = AsyncSession::new_v3(target, 1, security).await?;
            trace.step("waiting for the agent's identity");
            session.init().await.map_err(|error| failure(&error))?;
            Ok(session)
        }
    }
}

type Files = (
    Option<(SnmpAuthentication, std::path::PathBuf)>,
    Option<(SnmpPrivacy, std::path::PathBuf)>,
);

fn security(user: &str, (authentication, privacy): Files) -> Result<Security, String> {
    let Some((protocol, file)) = authentication else {
        return Ok(Security::new(user.as_bytes(), b"").with_auth(Auth::NoAuthNoPriv));
    };
    let security = Security::new(user.as_bytes(), &password(&file)?)
        .with_auth_protocol(match protocol {
            SnmpAuthentication::Md5 => AuthProtocol::Md5,
            SnmpAuthentication::Sha1 => AuthProtocol::Sha1,
            SnmpAuthentication::Sha224 => AuthProtocol::Sha224,
            SnmpAuthentication::Sha256 => AuthProtocol::Sha256,
            SnmpAuthentication::Sha384 => AuthProtocol::Sha384,
            SnmpAuthentication::Sha512 => AuthProtocol::Sha512,
        })
        .with_key_extension_method(KeyExtension::Reeder);
    let auth = match privacy {
        None => Auth::AuthNoPriv,
        Some((protocol, file)) => Auth::AuthPriv {
            cipher: match protocol {
                SnmpPrivacy::Des => Cipher::Des,
                SnmpPrivacy::Aes128 => Cipher::Aes128,
                SnmpPrivacy::Aes192 => Cipher::Aes192,
                SnmpPrivacy::Aes256 => Cipher::Aes256,
            },
            privacy_password: password(&file)?,
        },
    };
    Ok(security.with_auth(auth))
}

/// What is in the file, without the end of its line.
fn password(file: &Path) -> Result<Vec<u8>, String> {
    let text = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let password = text.trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        return Err(format!("{}: no password in it", file.display()));
    }
    Ok(password.as_bytes().to_vec())
}

/// The object's value, or why it has none.
async fn read(session: &mut AsyncSession, oid: &Oid<'_>) -> Result<Result<f64, Failure>, Error> {
    let answer = session.get(oid).await?;
    if answer.error_status != 0 {
        let words = format!("the agent answers with error {}", answer.error_status);
        return Ok(Err(Failure::Wrong(words)));
    }
    let Some((_, value)) = answer.varbinds.clone().next() else {
        return Ok(Err(Failure::Wrong("the answer holds no value".into())));
    };
    let number = number(&value);
    Ok(number.ok_or_else(|| Failure::Wrong(format!("{oid} is no number: {value:?}"))))
}

/// A number, or text that is one, such as a load average.
fn number(value: &Value<'_>) -> Option<f64> {
    let number = match value {
        Value::Integer(number) => *number as f64,
        Value::Counter32(number) | Value::Unsigned32(number) | Value::Timeticks(number) => {
            f64::from(*number)
        }
        Value::Counter64(number) => *number as f64,
        Value::OctetString(text) => std::str::from_utf8(text).ok()?.trim().parse().ok()?,
        _ => return None,
    };
    (number.is_finite() && number >= 0.0).then_some(number)
}

fn judge(snmp: &Snmp, value: &f64) -> Outcome {
    let busy = (value / f64::from(snmp.full.max(1)) * 100.0).min(f64::from(u8::MAX));
    let words = format!("{value} of {}: {busy:.0} % busy", snmp.full);
    Ok(Found {
        load: Some(Load::Busy(busy.round() as u8)),
        ..Found::new(Verdict::Pass, words)
    })
}

fn failure(error: &Error) -> Failure {
    match error {
        // The library keeps the reason to itself; on a socket for one target it
        // is an ICMP error.
        Error::Receive | Error::Send => {
            Failure::Io(std::io::Error::from_raw_os_error(libc::ECONNREFUSED))
        }
        other => Failure::Wrong(format!("SNMP: {other}")),
    }
}

#[cfg(test)]
#[path = "snmp_tests.rs"]
mod tests;
