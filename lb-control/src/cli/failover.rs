//! `lbctl failover`.

use std::path::Path;

use clap::Args;

use super::{Failure, Output, client, exit, print, show};
use crate::status::request::{FailoverAnswer, FailoverRequest};

/// Arguments of `failover`.
#[derive(Clone, Debug, Args)]
pub struct FailoverArgs {
    /// Only those of this VRID, with their sync groups; may be given several times.
    #[arg(long = "vrid", value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    pub vrids: Vec<u8>,
    /// To this peer, as `sync.peers` names it, and not to the best one.
    #[arg(long, value_name = "PEER")]
    pub to: Option<String>,
    /// Table or JSON.
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,
}

/// Asks for it, and says what has moved and what has not.
pub(super) async fn failover(socket: &Path, args: FailoverArgs) -> Result<(), Failure> {
    let request = FailoverRequest {
        vrids: args.vrids,
        to: args.to,
    };
    let answer: FailoverAnswer = client::post(socket, "/v1/failover", &request).await?;
    print(args.output, &answer, show::failover)?;
    if answer.errors.is_empty() {
        return Ok(());
    }
    Err(Failure {
        code: exit::REFUSED,
        errors: answer.errors,
    })
}
