//! The command line of `lb-conns`.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, bail};

use super::{HoldOptions, RateOptions, ServeOptions, UdpOptions};

/// How it is called.
pub const USAGE: &str = "\
lb-conns serve --name NAME [--tcp ADDR:PORT]… [--udp ADDR:PORT]… [--dns ADDR:PORT]…
lb-conns hold  --target ADDR:PORT --connections N [--ramp PER_SECOND] [--interval-ms MS]
               [--seconds S] [--bind ADDR]
lb-conns rate  --target ADDR:PORT --workers N --seconds S [--pause-ms MS]
lb-conns udp   --target ADDR:PORT --sockets N --seconds S [--interval-ms MS]
serve and hold read the commands `report` and `stop` from standard input.";

/// What to do.
#[derive(Clone, Debug)]
pub enum Mode {
    /// [`super::serve()`]
    Serve(ServeOptions),
    /// [`super::hold()`]
    Hold(HoldOptions),
    /// [`super::rate()`]
    Rate(RateOptions),
    /// [`super::udp()`]
    Udp(UdpOptions),
}

struct Flags(Vec<(String, String)>);

impl Flags {
    fn parse(args: impl Iterator<Item = String>) -> Result<Self> {
        let mut flags = Vec::new();
        let mut args = args;
        while let Some(flag) = args.next() {
            let value = args
                .next()
                .with_context(|| format!("{flag} needs a value"))?;
            flags.push((flag, value));
        }
        Ok(Self(flags))
    }

    fn all<T>(&mut self, flag: &str) -> Result<Vec<T>>
    where
        T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>,
    {
        let mut values = Vec::new();
        self.0.retain(|(f, v)| {
            let mine = f == flag;
            if mine {
                values.push(v.clone());
            }
            !mine
        });
        values
            .iter()
            .map(|v| v.parse().with_context(|| format!("{flag} {v}")))
            .collect()
    }

    fn optional<T>(&mut self, flag: &str) -> Result<Option<T>>
    where
        T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>,
    {
        Ok(self.all(flag)?.pop())
    }

    fn required<T>(&mut self, flag: &str) -> Result<T>
    where
        T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>,
    {
        self.optional(flag)?
            .with_context(|| format!("{flag} is missing"))
    }

    fn millis(&mut self, flag: &str, default: u64) -> Result<Duration> {
        Ok(Duration::from_millis(
            self.optional(flag)?.unwrap_or(default),
        ))
    }

    fn seconds(&mut self) -> Result<Option<Duration>> {
        let seconds: Option<f64> = self.optional("--seconds")?;
        seconds
            .map(|s| Duration::try_from_secs_f64(s).context("--seconds"))
            .transpose()
    }
}

/// Reads the arguments after the program's name.
pub fn parse(mut args: impl Iterator<Item = String>) -> Result<Mode> {
    let mode = args.next().context(USAGE)?;
    let mut flags = Flags::parse(args)?;
    let target = |flags: &mut Flags| flags.required::<SocketAddr>("--target");
    let parsed = match mode.as_str() {
        "serve" => Mode::Serve(ServeOptions {
            name: flags.required("--name")?,
            tcp: flags.all("--tcp")?,
            udp: flags.all("--udp")?,
            dns: flags.all("--dns")?,
        }),
        "hold" => Mode::Hold(HoldOptions {
            target: target(&mut flags)?,
            bind: flags.optional("--bind")?,
            connections: flags.required("--connections")?,
            ramp: flags.optional("--ramp")?.unwrap_or(1000),
            interval: flags.millis("--interval-ms", 900)?,
            duration: flags.seconds()?,
        }),
        "rate" => Mode::Rate(RateOptions {
            target: target(&mut flags)?,
            workers: flags.required("--workers")?,
            duration: flags.seconds()?.context("--seconds is missing")?,
            pause: flags.millis("--pause-ms", 0)?,
        }),
        "udp" => Mode::Udp(UdpOptions {
            target: target(&mut flags)?,
            sockets: flags.required("--sockets")?,
            interval: flags.millis("--interval-ms", 100)?,
            duration: flags.seconds()?.context("--seconds is missing")?,
        }),
        other => bail!("unknown mode {other}\n{USAGE}"),
    };
    if let Some((flag, _)) = flags.0.first() {
        bail!("unknown option {flag}\n{USAGE}");
    }
    Ok(parsed)
}
