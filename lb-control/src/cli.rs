//! The command line: arguments, requests to the daemon, and tables.
//!
//! Depends on [`crate::status`], and `check` on [`crate::config`]; `lbctl run`,
//! `check` and `detach` are dispatched by `main`.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;

use crate::status::{
    BackendStatus, LinkStatus, ServiceStatus, Status, VrrpStatus,
    request::{
        AdminAction, AdminAnswer, AdminRequest, FlowsAnswer, ForgetAnswer, PersistenceAnswer,
        PersistenceFilter, PlanAnswer, PlanRequest, ProbeAnswer, ProbeRequest, ReloadAnswer,
    },
};

pub mod check;
pub mod client;
mod detach;
mod failover;
pub mod show;
pub mod table;

pub use failover::FailoverArgs;

/// Exit statuses; 0 is success.
pub mod exit {
    /// Refused or invalid.
    pub const REFUSED: u8 = 1;
    /// The command line makes no sense; clap's own.
    pub const USAGE: u8 = 2;
    /// No daemon answers.
    pub const NO_DAEMON: u8 = 3;
    /// The daemon could not start or attach.
    pub const NOT_STARTED: u8 = 4;
}

/// Where the daemon listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/lbctl/lbctl.sock";

/// Where the daemon keeps operators' decisions unless told otherwise.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/lbctl";

/// Where the maps are pinned unless the configuration says otherwise.
pub const DEFAULT_PIN_DIR: &str = "/sys/fs/bpf/lbctl";

/// A command that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The exit status.
    pub code: u8,
    /// Why, one line an error.
    pub errors: Vec<String>,
}

impl Failure {
    /// A failure for one reason.
    pub fn new(code: u8, reason: impl Into<String>) -> Self {
        Self {
            code,
            errors: vec![reason.into()],
        }
    }
}

/// Prints what went wrong and gives the exit status.
pub fn finish(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            for error in &failure.errors {
                eprintln!("lbctl: {error}");
            }
            ExitCode::from(failure.code)
        }
    }
}

/// Layer-4 load balancer on XDP.
#[derive(Debug, Parser)]
#[command(
    name = "lbctl",
    version,
    after_help = "Exit status: 0 success, 1 refused or invalid, 2 wrong usage, 3 no daemon answers, \
                  4 the daemon could not start."
)]
pub struct Cli {
    /// The daemon's control socket.
    #[arg(long, global = true, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon: attach, balance, check backends, answer lbctl.
    Run(RunArgs),
    /// Validate a configuration without touching anything.
    Check {
        /// The configuration file.
        file: PathBuf,
    },
    /// Show what a reload with this file would change.
    Plan {
        /// The configuration file.
        file: PathBuf,
        /// Table or JSON.
        #[arg(long, short, value_enum, default_value_t)]
        output: Output,
    },
    /// Read the configuration again; all or nothing.
    Reload {
        /// Table or JSON.
        #[arg(long, short, value_enum, default_value_t)]
        output: Output,
    },
    /// The daemon, its interfaces and the flow table.
    Status {
        /// Table or JSON.
        #[arg(long, short, value_enum, default_value_t)]
        output: Output,
    },
    /// The virtual services with connections, throughput and drops.
    Services {
        /// Table or JSON.
        #[arg(long, short, value_enum, default_value_t)]
        output: Output,
    },
    /// The backends with health, weight, share, connections and throughput.
    Backends {
        /// Only those of this service.
        #[arg(long)]
        service: Option<String>,
        /// Only those of this pool.
        #[arg(long)]
        pool: Option<String>,
        /// Table or JSON.
        #[arg(long, short, value_enum, default_value_t)]
        output: Output,
    },
    /// The virtual routers: who is active, why and since when.
    Vrrp {
        /// Table or JSON.
        #[arg(long, short, value_enum, default_value_t)]
        output: Output,
    },
    /// The links to peers, their paths and what they carry.
    Sync {
        /// Table or JSON.
        #[arg(long, short, value_enum, default_value_t)]
        output: Output,
    },
    /// Print a fresh key for `sync.key_file`.
    SyncKey,
    /// Hand virtual routers over to a peer, without a gap.
    ///
    /// They stay there until that peer fails, leaves or hands them back.
    Failover(FailoverArgs),
    /// Flows of the sample that the data path keeps.
    Flows(FlowsArgs),
    /// Sources and the backends that persistence sends them to.
    Persistence(PersistenceArgs),
    /// Let a source's next connection go to any backend.
    Forget {
        /// An address of the source.
        source: IpAddr,
        /// Only in this group, or in this service where it is in none.
        #[arg(long)]
        group: Option<String>,
    },
    /// Make every health check of a backend now, and show its steps and their times.
    ///
    /// Changes nothing of the backend's state. Exit status 1 if one doesn't pass.
    Probe {
        /// The backend.
        #[command(flatten)]
        backend: BackendArg,
        /// Table or JSON.
        #[arg(long, short, value_enum, default_value_t)]
        output: Output,
    },
    /// Give a backend no new flows and let it serve those it has.
    Drain(BackendArg),
    /// Let a backend take part again.
    Enable(BackendArg),
    /// Take a backend out at once; its flows are cut.
    Disable(BackendArg),
    /// Give a backend another weight than the configuration's.
    Weight {
        /// The backend.
        #[command(flatten)]
        backend: BackendArg,
        /// Share of the traffic relative to the pool's other weights; 0 gets no new flows.
        weight: u16,
    },
    /// Forget what drain, enable, disable and weight said of a backend.
    Clear(BackendArg),
    /// Remove the data path and everything `run` has left in the kernel.
    Detach(DetachArgs),
}

/// Arguments of `run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// The configuration file.
    #[arg(long, short, value_name = "FILE")]
    pub config: PathBuf,
    /// Where operators' decisions and changed kernel settings are kept.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE_DIR)]
    pub state_dir: PathBuf,
}

/// Arguments of `detach`.
#[derive(Clone, Debug, Args)]
pub struct DetachArgs {
    /// The configuration, for its `pin_dir`.
    #[arg(long, short, value_name = "FILE", conflicts_with = "pin_dir")]
    pub config: Option<PathBuf>,
    /// Directory of the pinned maps and links.
    #[arg(long, value_name = "DIR")]
    pub pin_dir: Option<PathBuf>,
    /// Where the daemon kept what it changed in the kernel.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE_DIR)]
    pub state_dir: PathBuf,
}

/// Arguments of `persistence`.
#[derive(Clone, Debug, Args)]
pub struct PersistenceArgs {
    /// Only those of this group, or of this service where it is in none.
    #[arg(long)]
    pub group: Option<String>,
    /// Only the source that this address belongs to.
    #[arg(long, value_name = "ADDRESS")]
    pub source: Option<IpAddr>,
    /// At most so many.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Table or JSON.
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,
}

/// Arguments of `flows`.
#[derive(Clone, Debug, Args)]
pub struct FlowsArgs {
    /// Only those of this service.
    #[arg(long)]
    pub service: Option<String>,
    /// Only those of this backend: BACKEND or POOL/BACKEND.
    #[arg(long)]
    pub backend: Option<String>,
    /// Only those of this client's address.
    #[arg(long, value_name = "ADDRESS")]
    pub client: Option<IpAddr>,
    /// At most so many.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Table or JSON.
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,
}

/// A backend on the command line.
#[derive(Clone, Debug, Args)]
pub struct BackendArg {
    /// The backend, as POOL/BACKEND.
    #[arg(value_name = "POOL/BACKEND", value_parser = pool_and_backend)]
    pub backend: (String, String),
}

fn pool_and_backend(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((pool, backend)) if !pool.is_empty() && !backend.is_empty() => {
            Ok((pool.into(), backend.into()))
        }
        _ => Err("write it as POOL/BACKEND, such as web/web-1".into()),
    }
}

/// How an answer is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// Carries out a command that a running daemon answers. `run`, `check`,
/// `detach` and `sync-key` are not among them.
pub async fn talk(socket: &Path, command: Command) -> Result<(), Failure> {
    let colour = table::colour_wanted();
    match command {
        Command::Status { output } => {
            let status: Status = client::get(socket, "/v1/status").await?;
            print(output, &status, |s| show::status(s, colour, unix_now()))
        }
        Command::Services { output } => {
            let services: Vec<ServiceStatus> = client::get(socket, "/v1/services").await?;
            print(output, &services, |s| show::services(s, colour))
        }
        Command::Backends {
            service,
            pool,
            output,
        } => {
            let mut backends: Vec<BackendStatus> = client::get(socket, "/v1/backends").await?;
            let wanted = |wish: &Option<String>, is: &str| wish.as_ref().is_none_or(|w| w == is);
            backends.retain(|b| wanted(&service, &b.service) && wanted(&pool, &b.pool));
            print(output, &backends, |b| show::backends(b, colour, unix_now()))
        }
        Command::Vrrp { output } => {
            let routers: Vec<VrrpStatus> = client::get(socket, "/v1/vrrp").await?;
            print(output, &routers, |r| show::vrrp(r, colour, unix_now()))
        }
        Command::Sync { output } => {
            let links: Vec<LinkStatus> = client::get(socket, "/v1/sync").await?;
            print(output, &links, |links| {
                show::sync(links, colour, unix_now())
            })
        }
        Command::Flows(args) => {
            let output = args.output;
            let flows: FlowsAnswer = client::get(socket, &flows_path(&args)).await?;
            print(output, &flows, show::flows)
        }
        Command::Persistence(args) => {
            let query = [
                ("group", args.group),
                ("source", args.source.map(|address| address.to_string())),
                ("limit", args.limit.map(|limit| limit.to_string())),
            ];
            let path = with_query("/v1/persistence", query);
            let answer: PersistenceAnswer = client::get(socket, &path).await?;
            print(args.output, &answer, show::persistence)
        }
        Command::Forget { source, group } => {
            let filter = PersistenceFilter {
                group,
                source: Some(source),
                limit: None,
            };
            let answer: ForgetAnswer = client::post(socket, "/v1/forget", &filter).await?;
            println!("{}", show::forgotten(&answer, source));
            Ok(())
        }
        Command::Failover(args) => failover::failover(socket, args).await,
        Command::Probe { backend, output } => probe(socket, backend, output).await,
        Command::Reload { output } => {
            let answer: ReloadAnswer = client::post(socket, "/v1/reload", &()).await?;
            print(output, &answer, show::reload)
        }
        Command::Plan { file, output } => {
            let path = std::path::absolute(&file).map_err(|error| {
                Failure::new(exit::REFUSED, format!("{}: {error}", file.display()))
            })?;
            let request = PlanRequest {
                path: path.to_string_lossy().into_owned(),
            };
            let answer: PlanAnswer = client::post(socket, "/v1/plan", &request).await?;
            print(output, &answer, |answer| show::plan(answer, colour))?;
            if answer.refused.is_empty() {
                Ok(())
            } else {
                Err(Failure {
                    code: exit::REFUSED,
                    errors: answer.refused,
                })
            }
        }
        Command::Drain(backend) => admin(socket, backend, AdminAction::Drain).await,
        Command::Enable(backend) => admin(socket, backend, AdminAction::Enable).await,
        Command::Disable(backend) => admin(socket, backend, AdminAction::Disable).await,
        Command::Weight { backend, weight } => {
            admin(socket, backend, AdminAction::Weight { weight }).await
        }
        Command::Clear(backend) => admin(socket, backend, AdminAction::Clear).await,
        Command::Run(_) | Command::Check { .. } | Command::Detach(_) | Command::SyncKey => Err(
            Failure::new(exit::USAGE, "this command is not answered by a daemon"),
        ),
    }
}

async fn probe(socket: &Path, backend: BackendArg, output: Output) -> Result<(), Failure> {
    let (pool, backend) = backend.backend;
    let request = ProbeRequest { pool, backend };
    let answer: ProbeAnswer = client::post(socket, "/v1/probe", &request).await?;
    let colour = table::colour_wanted();
    print(output, &answer, |answer| show::probe(answer, colour))?;
    let failed = answer.checks.iter().filter(|c| c.verdict != "pass").count();
    if failed == 0 {
        return Ok(());
    }
    let words = format!(
        "{failed} of {} checks of {} did not pass",
        answer.checks.len(),
        answer.backend
    );
    Err(Failure::new(exit::REFUSED, words))
}

async fn admin(socket: &Path, backend: BackendArg, action: AdminAction) -> Result<(), Failure> {
    let (pool, backend) = backend.backend;
    let request = AdminRequest {
        pool,
        backend,
        action,
    };
    let answer: AdminAnswer = client::post(socket, "/v1/admin", &request).await?;
    println!("{}", show::admin(&answer));
    Ok(())
}

fn flows_path(args: &FlowsArgs) -> String {
    let query = [
        ("service", args.service.clone()),
        ("backend", args.backend.clone()),
        ("client", args.client.map(|address| address.to_string())),
        ("limit", args.limit.map(|limit| limit.to_string())),
    ];
    with_query("/v1/flows", query)
}

/// The path with those of the parameters that there are.
fn with_query<const N: usize>(path: &str, query: [(&str, Option<String>); N]) -> String {
    let query: Vec<String> = query
        .into_iter()
        .filter_map(|(name, value)| Some(format!("{name}={}", percent_encoded(&value?))))
        .collect();
    if query.is_empty() {
        path.to_owned()
    } else {
        format!("{path}?{}", query.join("&"))
    }
}

/// A query value with everything escaped but RFC 3986's unreserved characters.
fn percent_encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}

fn print<T: Serialize>(
    output: Output,
    answer: &T,
    table: impl FnOnce(&T) -> String,
) -> Result<(), Failure> {
    match output {
        Output::Table => print!("{}", table(answer)),
        Output::Json => {
            let json = serde_json::to_string_pretty(answer).map_err(|error| {
                Failure::new(exit::REFUSED, format!("cannot write JSON: {error}"))
            })?;
            println!("{json}");
        }
    }
    Ok(())
}

#[allow(
    clippy::disallowed_methods,
    reason = "tables say how long ago something was"
)]
fn unix_now() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_arguments_contradict_nothing() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_backend_is_written_with_its_pool() {
        let cli = Cli::try_parse_from(["lbctl", "weight", "web/web-1", "50"]).unwrap();
        let Command::Weight { backend, weight } = cli.command else {
            panic!("{:?}", cli.command)
        };
        assert_eq!(backend.backend, ("web".into(), "web-1".into()));
        assert_eq!(weight, 50);
        for wrong in ["web-1", "/web-1", "web/"] {
            let error = Cli::try_parse_from(["lbctl", "drain", wrong]).unwrap_err();
            assert!(error.to_string().contains("POOL/BACKEND"), "{error}");
            assert_eq!(error.exit_code(), i32::from(exit::USAGE));
        }
    }

    #[test]
    fn filters_are_escaped_in_the_query() {
        let args = FlowsArgs {
            service: Some("a b&c".into()),
            backend: Some("web/web-1".into()),
            client: Some("2001:db8::1".parse().unwrap()),
            limit: None,
            output: Output::Json,
        };
        assert_eq!(
            flows_path(&args),
            "/v1/flows?service=a%20b%26c&backend=web%2Fweb-1&client=2001%3Adb8%3A%3A1"
        );
    }

    #[tokio::test]
    async fn without_a_daemon_there_is_one_clear_line() {
        let socket = Path::new("/nonexistent/lbctl.sock");
        let failure = talk(
            socket,
            Command::Status {
                output: Output::Table,
            },
        )
        .await
        .unwrap_err();
        assert_eq!(failure.code, exit::NO_DAEMON);
        assert_eq!(
            failure.errors,
            [
                "no daemon answers on /nonexistent/lbctl.sock; start one with `lbctl run -c FILE`, \
                 or give its --socket"
            ]
        );
    }
}
