//! Keys of the checks that are neither HTTP nor a mere connection.

use hickory_proto::{
    op::ResponseCode,
    rr::{Name, RecordType},
};

use super::super::{reader::Fields, value, yaml::Node};
use super::http::{path, pattern, text, tls_of};
use crate::model::{
    Agent, Dns, Exec, Ping, Secret, Smtp, Snmp, SnmpAccess, SnmpAuthentication, SnmpPrivacy, Udp,
};

/// Response codes by name (RFC 1035 §4.1.1).
const CODES: [(&str, ResponseCode); 6] = [
    ("NOERROR", ResponseCode::NoError),
    ("FORMERR", ResponseCode::FormErr),
    ("SERVFAIL", ResponseCode::ServFail),
    ("NXDOMAIN", ResponseCode::NXDomain),
    ("NOTIMP", ResponseCode::NotImp),
    ("REFUSED", ResponseCode::Refused),
];

pub(super) fn ping(fields: &Fields<'_>) -> Ping {
    let size = fields.optional("packet_size", value::number(68..=65_535));
    Ping {
        packet_size: size.map(|size| u16::try_from(size).unwrap_or(u16::MAX)),
    }
}

pub(super) fn udp(fields: &Fields<'_>) -> Option<Udp> {
    let given = (
        fields.optional("send", plain_text),
        fields.optional("send_hex", hex),
    );
    let send = match given {
        (Some(_), Some(_)) => {
            if let Some(at) = fields.get("send_hex") {
                at.error("`send` is given, too; remove one of them");
            }
            None
        }
        (Some(text), None) => Some(text.into_bytes()),
        (None, hex) => hex.or_else(|| {
            fields.error("a datagram has to hold something; give the check `send` or `send_hex`");
            None
        }),
    };
    let required = fields.or("answer", true, |node| {
        value::choice(node, &[("required", true), ("optional", false)], &[])
    });
    let expect = fields.get("expect");
    let expect = expect.and_then(|at| at.fields(&["body_contains", "body_regex"], &[]));
    let expect = expect.as_ref();
    Some(Udp {
        send: send?,
        answer_required: required,
        contains: expect.and_then(|f| f.optional("body_contains", text)),
        regex: expect.and_then(|f| f.optional("body_regex", pattern)),
    })
}

pub(super) fn dns(fields: &Fields<'_>) -> Option<Dns> {
    let query = fields.required("query")?.read(|node| match node {
        Node::Text(text) if Name::from_ascii(text).is_ok() => Ok(text.clone()),
        _ => Err("allowed: a name, such as \"shop.example\"".into()),
    });
    let record = fields.or("record", "A".to_owned(), |node| match node {
        Node::Text(text) if text.parse::<RecordType>().is_ok() => Ok(text.clone()),
        _ => Err("allowed: a type of record, such as A, AAAA or SOA".into()),
    });
    let known = ["rcode", "min_answers", "answer"];
    let expect = fields.get("expect").and_then(|at| at.fields(&known, &[]));
    let expect = expect.as_ref();
    let codes = expect.and_then(|f| f.optional("rcode", codes));
    Some(Dns {
        query: query?,
        record,
        tcp: fields.or("transport", false, |node| {
            value::choice(node, &[("udp", false), ("tcp", true)], &[])
        }),
        codes: codes.unwrap_or_else(|| vec![u16::from(ResponseCode::NoError)]),
        min_answers: expect
            .and_then(|f| f.optional("min_answers", value::number(0..=1000)))
            .map_or(1, |number| u16::try_from(number).unwrap_or(u16::MAX)),
        answer: expect.and_then(|f| f.optional("answer", text)),
    })
}

/// A response code, or a list of them.
fn codes(node: &Node) -> Result<Vec<u16>, String> {
    let items = match node {
        Node::List(items) if !items.is_empty() => items.as_slice(),
        one => std::slice::from_ref(one),
    };
    items
        .iter()
        .map(|item| value::choice(item, &CODES, &[]).map(u16::from))
        .collect()
}

pub(super) fn smtp(fields: &Fields<'_>) -> Smtp {
    let starttls = fields.or("starttls", false, value::boolean);
    if !starttls {
        for key in super::KEYS.iter().filter(|(_, types)| *types == super::TLS) {
            if let Some(at) = fields.get(key.0) {
                at.error("has no meaning without TLS; give `starttls: true`, or remove it");
            }
        }
    }
    Smtp {
        helo: fields.or("helo", "lbctl".to_owned(), |node| match node {
            Node::Text(text)
                if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()) =>
            {
                Ok(text.clone())
            }
            _ => Err("allowed: a name without spaces, such as \"lb1.example\"".into()),
        }),
        starttls: starttls.then(|| tls_of(fields)),
    }
}

pub(super) fn exec(fields: &Fields<'_>) -> Option<Exec> {
    let command: Vec<String> = fields
        .required("command")?
        .items()
        .into_iter()
        .filter_map(|at| at.read(argument))
        .collect();
    let at = fields.get("command")?;
    match command.first() {
        Some(program) if program.starts_with('/') => {}
        Some(program) => at.error(format!(
            "the program {program:?} has to be an absolute path; there is no shell to find it"
        )),
        None => at.error("allowed: a program and its arguments, such as [/usr/local/bin/check-it]"),
    }
    Some(Exec {
        command,
        user: fields.or("user", "nobody".to_owned(), text),
        dynamic: fields.or("dynamic", false, value::boolean),
    })
}

/// Text, or a number as it is written.
fn argument(node: &Node) -> Result<String, String> {
    match node {
        Node::Text(text) if !text.contains('\0') => Ok(text.clone()),
        Node::Integer(number) => Ok(number.to_string()),
        _ => Err("allowed: text".into()),
    }
}

pub(super) fn agent(fields: &Fields<'_>) -> Option<Agent> {
    let path_given = fields.optional("path", path);
    let send = fields.optional("send", plain_text);
    match (path_given, send) {
        (Some(_), Some(_)) => {
            if let Some(at) = fields.get("send") {
                at.error("belongs to the line protocol, and `path` to HTTP; remove one of them");
            }
            None
        }
        (Some(path), None) => Some(Agent::Json { path }),
        (None, send) => Some(Agent::Line {
            send: send.unwrap_or_default(),
        }),
    }
}

pub(super) fn snmp(fields: &Fields<'_>) -> Option<Snmp> {
    let oid = fields.required("oid")?.read(oid);
    let full = fields.or("full", 100, value::number(1..=u32::MAX));
    let access = access(fields);
    Some(Snmp {
        oid: oid?,
        full,
        access: access?,
    })
}

fn access(fields: &Fields<'_>) -> Option<SnmpAccess> {
    let of_version_3 = [
        "user",
        "authentication",
        "authentication_file",
        "privacy",
        "privacy_file",
    ];
    let Some(user) = fields.optional("user", text) else {
        for at in of_version_3.iter().filter_map(|key| fields.get(key)) {
            at.error("belongs to version 3 of SNMP, which needs a `user`");
        }
        let community = fields.optional("community", text);
        return Some(SnmpAccess::Community(Secret(
            community.unwrap_or_else(|| "public".into()),
        )));
    };
    if let Some(at) = fields.get("community") {
        at.error("belongs to version 2c of SNMP, and `user` to version 3; remove one of them");
    }
    let authentication = with_file(fields, "authentication", |node| {
        let names = [
            ("md5", SnmpAuthentication::Md5),
            ("sha1", SnmpAuthentication::Sha1),
            ("sha224", SnmpAuthentication::Sha224),
            ("sha256", SnmpAuthentication::Sha256),
            ("sha384", SnmpAuthentication::Sha384),
            ("sha512", SnmpAuthentication::Sha512),
        ];
        value::choice(node, &names, &[])
    });
    let privacy = with_file(fields, "privacy", |node| {
        let names = [
            ("des", SnmpPrivacy::Des),
            ("aes128", SnmpPrivacy::Aes128),
            ("aes192", SnmpPrivacy::Aes192),
            ("aes256", SnmpPrivacy::Aes256),
        ];
        value::choice(node, &names, &[])
    });
    if authentication.is_none()
        && privacy.is_some()
        && let Some(at) = fields.get("privacy")
    {
        at.error("SNMP encrypts only what it authenticates; give `authentication`, too");
    }
    Some(SnmpAccess::User {
        user,
        authentication,
        privacy,
    })
}

/// A protocol, and the file with its password under the key with `_file`.
fn with_file<T>(
    fields: &Fields<'_>,
    key: &str,
    read: impl FnOnce(&Node) -> Result<T, String>,
) -> Option<(T, std::path::PathBuf)> {
    let file_key = format!("{key}_file");
    let file = fields.optional(&file_key, value::absolute_path);
    match (fields.optional(key, read), file) {
        (Some(protocol), Some(file)) => Some((protocol, file)),
        (None, None) => None,
        _ => {
            let at = fields.get(key).or(fields.get(&file_key));
            let is_alone = fields.get(key).is_none() || fields.get(&file_key).is_none();
            if let Some(at) = at.filter(|_| is_alone) {
                at.error(format!(
                    "{key} and {file_key} belong together; give both or neither"
                ));
            }
            None
        }
    }
}

/// Numbers with dots between them.
fn oid(node: &Node) -> Result<Vec<u64>, String> {
    const ALLOWED: &str = "allowed: an object's number, such as \"1.3.6.1.4.1.2021.10.1.5.1\"";
    let Node::Text(text) = node else {
        return Err(ALLOWED.into());
    };
    let text = text.strip_prefix('.').unwrap_or(text);
    let numbers: Option<Vec<u64>> = text
        .split('.')
        .map(|number| number.parse::<u32>().ok().map(u64::from))
        .collect();
    // The first two share a byte (X.690 §8.19.4).
    numbers
        .filter(|numbers| match numbers.as_slice() {
            [first @ 0..=1, second, ..] => *second < 40 && *first < 2,
            [2, _, ..] => true,
            _ => false,
        })
        .ok_or_else(|| ALLOWED.to_owned())
}

/// Any text, such as one with an end of line; nothing but text.
fn plain_text(node: &Node) -> Result<String, String> {
    match node {
        Node::Text(text) => Ok(text.clone()),
        _ => Err("allowed: text in quotes".into()),
    }
}

/// Bytes in hexadecimal, with spaces wherever.
fn hex(node: &Node) -> Result<Vec<u8>, String> {
    let Node::Text(text) = node else {
        return Err("allowed: bytes in hexadecimal in quotes, such as \"de ad be ef\"".into());
    };
    let digits: String = text.split_whitespace().collect();
    let is_whole = digits.len().is_multiple_of(2) && digits.bytes().all(|b| b.is_ascii_hexdigit());
    let bytes: Option<Vec<u8>> = (0..digits.len())
        .step_by(2)
        .map(|at| {
            digits
                .get(at..at + 2)
                .and_then(|pair| u8::from_str_radix(pair, 16).ok())
        })
        .collect();
    bytes
        .filter(|bytes| is_whole && !bytes.is_empty())
        .ok_or_else(|| "allowed: bytes in hexadecimal in quotes, such as \"de ad be ef\"".into())
}
