//! Clients and servers with thousands of connections, see
//! [`lb_tests::conns`].

use anyhow::Result;
use lb_tests::conns::{self, args};

fn main() -> Result<()> {
    let mode = args::parse(std::env::args().skip(1))?;
    conns::raise_open_files_limit()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match mode {
            args::Mode::Serve(options) => conns::serve(options).await?,
            args::Mode::Hold(options) => drop(conns::hold(options).await?),
            args::Mode::Rate(options) => drop(conns::rate(options).await?),
            args::Mode::Udp(options) => drop(conns::udp(options).await?),
        }
        Ok(())
    })
}
