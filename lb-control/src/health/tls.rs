//! TLS of checks: whom the balancer takes for the server, and until when the
//! server's certificate is valid.

use std::{
    collections::HashMap,
    net::IpAddr,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
};
use tokio::{net::TcpStream, sync::OnceCell, task};
use tokio_rustls::{TlsConnector, client::TlsStream};
use x509_parser::parse_x509_certificate;

use super::{probe::Failure, trace::Trace};
use crate::model::Tls;

/// Configurations that were made so far, or what is wrong with their files. They
/// are forgotten with each reload, so that files that were replaced are read
/// again.
#[derive(Debug, Default)]
pub struct Configs(Mutex<HashMap<Tls, Arc<OnceCell<Made>>>>);

type Made = Result<Arc<ClientConfig>, String>;

impl Configs {
    /// The configuration of a check.
    ///
    /// # Errors
    /// A file can't be read or makes no sense; in words.
    pub async fn of(&self, tls: &Tls) -> Made {
        let cell = {
            let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(known.entry(tls.clone()).or_default())
        };
        // Files may hang; then those that need them wait, and nobody else.
        let made = cell
            .get_or_try_init(|| {
                let tls = tls.clone();
                task::spawn_blocking(move || make(&tls).map(Arc::new))
            })
            .await;
        match made {
            Ok(made) => made.clone(),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Has files be read again.
    pub fn forget(&self) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.clear();
    }
}

/// The handshake, with the server that has this name, or else this address in
/// its certificate.
pub(super) async fn connect(
    stream: TcpStream,
    config: Arc<ClientConfig>,
    (name, address): (Option<&str>, IpAddr),
    protocols: &[&[u8]],
    trace: &Trace,
) -> Result<TlsStream<TcpStream>, Failure> {
    let name = match name {
        Some(name) => ServerName::try_from(name.to_owned())
            .map_err(|error| Failure::Ours(format!("server_name {name:?}: {error}")))?,
        None => address.into(),
    };
    trace.step("connected, waiting for the TLS handshake");
    let protocols = protocols.iter().map(|name| name.to_vec()).collect();
    let connecting = TlsConnector::from(config)
        .with_alpn(protocols)
        .connect(name, stream);
    let stream = connecting.await.map_err(|error| {
        if error.raw_os_error().is_some() {
            Failure::Io(error)
        } else {
            Failure::Wrong(format!("TLS: {error}"))
        }
    })?;
    let (_, session) = stream.get_ref();
    let expiry = session
        .peer_certificates()
        .and_then(<[_]>::first)
        .and_then(expiry);
    trace.certificate(expiry);
    Ok(stream)
}

fn make(tls: &Tls) -> Result<ClientConfig, String> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = if tls.insecure {
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
    } else {
        builder.with_root_certificates(roots(tls.ca_file.as_deref())?)
    };
    let config = match &tls.client {
        Some(client) => {
            let key = PrivateKeyDer::from_pem_file(&client.key_file)
                .map_err(|error| unreadable(&client.key_file, &error))?;
            builder
                .with_client_auth_cert(certificates(&client.certificate_file)?, key)
                .map_err(|error| unreadable(&client.certificate_file, &error))?
        }
        None => builder.with_no_client_auth(),
    };
    Ok(config)
}

fn unreadable(path: &Path, error: &dyn std::fmt::Display) -> String {
    format!("{}: {error}", path.display())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| unreadable(path, &error))?;
    if all.is_empty() {
        return Err(unreadable(path, &"no certificate in PEM in it"));
    }
    Ok(all)
}

/// The file's authorities, or those of the system.
fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = ca_file {
        for certificate in certificates(path)? {
            roots
                .add(certificate)
                .map_err(|error| unreadable(path, &error))?;
        }
        return Ok(roots);
    }
    let system = rustls_native_certs::load_native_certs();
    let (taken, _) = roots.add_parsable_certificates(system.certs);
    if taken == 0 {
        return Err("the system has no CA certificates; give the check a ca_file".into());
    }
    Ok(roots)
}

/// When a certificate's validity ends, in seconds since the Unix epoch.
pub fn expiry(certificate: &CertificateDer<'_>) -> Option<i64> {
    let (_, parsed) = parse_x509_certificate(certificate).ok()?;
    Some(parsed.validity().not_after.timestamp())
}

/// Takes whatever certificate the server shows; its signatures still count.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tests;
