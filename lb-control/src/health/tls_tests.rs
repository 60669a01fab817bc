use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::WebPkiClientVerifier,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::{
    health::{Found, Verdict, testing::probe_within},
    model::{CheckKind, ClientCertificate, Expect, Http, HttpMethod, Smtp},
};

const PATIENCE: Duration = Duration::from_secs(5);

/// An authority, and files of what it signed.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    directory: PathBuf,
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let directory =
            std::env::temp_dir().join(format!("lbctl-tls-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("ca.pem"), certificate.pem()).unwrap();
        Self {
            certificate: certificate.der().clone(),
            issuer: Issuer::new(params, key),
            directory,
        }
    }

    fn ca_file(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    fn issue(&self, name: &str, last_year: i32) -> (CertificateDer<'static>, KeyPair, String) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(last_year, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.der().clone(), key, certificate.pem())
    }

    /// A client's certificate.
    fn client(&self) -> ClientCertificate {
        let (_, key, pem) = self.issue("balancer.example", 2100);
        let [certificate_file, key_file] = ["c.pem", "k.pem"].map(|f| self.directory.join(f));
        std::fs::write(&certificate_file, pem).unwrap();
        std::fs::write(&key_file, key.serialize_pem()).unwrap();
        ClientCertificate {
            certificate_file,
            key_file,
        }
    }

    /// A server for `name` that says 200 to everybody.
    async fn server(&self, name: &str, last_year: i32, asks_for_client: bool) -> SocketAddr {
        let acceptor = self.acceptor(name, last_year, asks_for_client);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    continue;
                };
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
                let _ = stream.shutdown().await;
            }
        });
        address
    }

    fn acceptor(&self, name: &str, last_year: i32, asks_for_client: bool) -> TlsAcceptor {
        let (certificate, key, _) = self.issue(name, last_year);
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if asks_for_client {
            let mut roots = RootCertStore::empty();
            roots.add(self.certificate.clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        } else {
            builder.with_no_client_auth()
        };
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = builder.with_single_cert(vec![certificate], key).unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

async fn ask(address: SocketAddr, tls: Tls, timeout: Duration) -> Found {
    let check = Http {
        method: HttpMethod::Get,
        path: "/".into(),
        host: None,
        headers: Vec::new(),
        full_size: false,
        expect: Expect {
            status: vec![(200, 200)],
            headers: Vec::new(),
            body_contains: None,
            body_regex: None,
        },
        tls: Some(tls),
    };
    probe_within(CheckKind::Http(Box::new(check)), address, timeout).await
}

fn trusting(authority: &Authority, name: &str) -> Tls {
    Tls {
        server_name: Some(name.into()),
        ca_file: Some(authority.ca_file()),
        ..Tls::default()
    }
}

fn is_wrong(found: &Found, why: &str) {
    assert_eq!(found.verdict, Verdict::WrongAnswer, "{found:?}");
    assert!(found.words.starts_with("TLS: "), "{found:?}");
    assert!(found.words.contains(why), "{found:?}\nexpected {why}");
}

#[tokio::test]
async fn a_server_passes_by_its_name_and_authority_and_its_certificate_is_read() {
    let authority = Authority::new("pass");
    let address = authority.server("shop.example", 2099, false).await;
    let found = ask(address, trusting(&authority, "shop.example"), PATIENCE).await;
    assert_eq!(
        (found.verdict, found.words.as_str()),
        (Verdict::Pass, "status 200")
    );
    // 2099-01-01, in seconds since 1970.
    assert_eq!(found.certificate_expiry, Some(4_070_908_800));
    // Without a name it is the address that the certificate has to have.
    let by_address = authority.server("127.0.0.1", 2099, false).await;
    let tls = Tls {
        server_name: None,
        ..trusting(&authority, "")
    };
    assert_eq!(ask(by_address, tls, PATIENCE).await.verdict, Verdict::Pass);
}

#[tokio::test]
async fn what_is_wrong_with_a_certificate_is_said() {
    let (authority, other) = (Authority::new("wrong"), Authority::new("other"));
    let address = authority.server("shop.example", 2099, false).await;
    let found = ask(address, trusting(&authority, "mail.example"), PATIENCE).await;
    is_wrong(&found, "not valid for name");
    let found = ask(address, trusting(&other, "shop.example"), PATIENCE).await;
    is_wrong(&found, "invalid peer certificate");
    let expired = authority.server("shop.example", 2021, false).await;
    let found = ask(expired, trusting(&authority, "shop.example"), PATIENCE).await;
    is_wrong(&found, "expired");
    // Whoever doesn't care is told when it ended all the same.
    let insecure = Tls {
        insecure: true,
        ..Tls::default()
    };
    let found = ask(expired, insecure, PATIENCE).await;
    assert_eq!(found.verdict, Verdict::Pass, "{found:?}");
    assert_eq!(found.certificate_expiry, Some(1_609_459_200));
}

#[tokio::test]
async fn a_server_that_asks_for_a_certificate_gets_the_checks() {
    let authority = Authority::new("client");
    let address = authority.server("shop.example", 2099, true).await;
    let without = trusting(&authority, "shop.example");
    let found = ask(address, without.clone(), PATIENCE).await;
    assert_ne!(found.verdict, Verdict::Pass, "{found:?}");
    let with = Tls {
        client: Some(authority.client()),
        ..without
    };
    let found = ask(address, with, PATIENCE).await;
    assert_eq!(found.verdict, Verdict::Pass, "{found:?}");
}

#[tokio::test]
async fn who_speaks_no_tls_or_not_at_all_costs_its_own_check() {
    let authority = Authority::new("garbage");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let tls = trusting(&authority, "shop.example");
    let server = tokio::spawn(async move {
        let (mut garbage, _) = listener.accept().await.unwrap();
        garbage
            .write_all(b"HTTP/1.1 400 Bad\r\n\r\n")
            .await
            .unwrap();
        let (tarpit, _) = listener.accept().await.unwrap();
        (garbage, tarpit)
    });
    is_wrong(
        &ask(address, tls.clone(), PATIENCE).await,
        "corrupt message",
    );
    let found = ask(address, tls, Duration::from_millis(200)).await;
    assert_eq!(found.verdict, Verdict::Timeout);
    assert!(
        found.words.ends_with("waiting for the TLS handshake"),
        "{found:?}"
    );
    server.await.unwrap();
}

#[tokio::test]
async fn files_that_make_no_sense_are_our_own_fault_and_named() {
    let authority = Authority::new("files");
    let address = authority.server("shop.example", 2099, false).await;
    let empty = authority.directory.join("empty.pem");
    std::fs::write(&empty, "nothing").unwrap();
    for (file, why) in [
        (authority.directory.join("none.pem"), "none.pem: "),
        (empty, "empty.pem: no certificate in PEM in it"),
    ] {
        let tls = Tls {
            ca_file: Some(file),
            ..trusting(&authority, "shop.example")
        };
        let found = ask(address, tls, PATIENCE).await;
        assert_eq!(found.verdict, Verdict::NotMade, "{found:?}");
        assert!(found.words.starts_with("could not check: "), "{found:?}");
        assert!(found.words.contains(why), "{found:?}");
    }
}

#[tokio::test]
async fn files_are_read_again_after_a_reload_and_not_before() {
    let (authority, other) = (Authority::new("again"), Authority::new("again-other"));
    let configs = Configs::default();
    let tls = trusting(&authority, "shop.example");
    let first = configs.of(&tls).await.unwrap();
    std::fs::copy(other.ca_file(), authority.ca_file()).unwrap();
    assert!(Arc::ptr_eq(&first, &configs.of(&tls).await.unwrap()));
    configs.forget();
    assert!(!Arc::ptr_eq(&first, &configs.of(&tls).await.unwrap()));
}

/// A mail server whose certificate is for `name`.
async fn mail_server(authority: &Authority, name: &str) -> SocketAddr {
    let acceptor = authority.acceptor(name, 2100, false);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut heard = [0; 1024];
        for says in ["220 hi\r\n", "250 STARTTLS\r\n", "220 go on\r\n"] {
            stream.write_all(says.as_bytes()).await.unwrap();
            if !says.starts_with("220 go") {
                let _ = stream.read(&mut heard).await.unwrap();
            }
        }
        let Ok(mut stream) = acceptor.accept(stream).await else {
            return;
        };
        let _ = stream.read(&mut heard).await.unwrap();
        stream.write_all(b"250 hi again\r\n").await.unwrap();
        let _ = stream.read(&mut heard).await;
    });
    address
}

#[tokio::test]
async fn a_mail_server_goes_on_over_tls_and_its_certificate_is_read() {
    let authority = Authority::new("mail");
    let check = |name: &str| {
        CheckKind::Smtp(Box::new(Smtp {
            helo: "lb1.example".into(),
            starttls: Some(trusting(&authority, name)),
        }))
    };
    let right = mail_server(&authority, "mx.example").await;
    let found = probe_within(check("mx.example"), right, PATIENCE).await;
    assert_eq!(
        (found.verdict, found.words.as_str()),
        (Verdict::Pass, "220 hi")
    );
    assert!(found.certificate_expiry.is_some());
    let wrong = mail_server(&authority, "other.example").await;
    let found = probe_within(check("mx.example"), wrong, PATIENCE).await;
    assert_eq!(found.verdict, Verdict::WrongAnswer, "{found:?}");
    assert!(found.words.starts_with("TLS: "), "{found:?}");
}
