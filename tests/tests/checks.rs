//! Health checks of real servers.

use std::time::Duration;

use anyhow::{Result, ensure};
use lb_tests::{
    check,
    config::Config,
    process::wait_ok,
    site::Site,
    topology::{Kind, Options},
};

const SOON: Duration = Duration::from_secs(10);

const SERVICE: &str = "web-v4";

/// Has the pools of nginx checked by HTTP.
fn by_http(config: &mut Config, rest: &str) {
    for pool in &mut config.pools {
        if pool.name.starts_with("web") {
            pool.extra = vec![format!(
                "health: [{{type: http, path: \"/healthz?deep=1\", interval: 300ms, timeout: 250ms, \
                 rise: 1, fall: 2, {rest}}}]"
            )];
        }
    }
}

fn wait_health(site: &Site, backend: &str, health: &str, result: &str) -> Result<()> {
    wait_ok(format!("{backend} to be {health}"), SOON, || {
        let row = site.backend(SERVICE, backend)?;
        let text = row["last_result"].as_str().unwrap_or_default();
        ensure!(
            row["health"] == health && text.contains(result),
            "it is {row}"
        );
        Ok(())
    })
}

#[test]
fn an_http_check_believes_the_right_answer_alone() {
    check(|| {
        let mut site = Site::full(Kind::NatTwoArmed, &Options::default(), |config| {
            by_http(config, "expect: {body_regex: \"^backend-[12]\"}");
        })?;
        for backend in ["backend-1", "backend-2"] {
            wait_health(&site, backend, "up", "status 200")?;
        }
        // It serves, and says the wrong thing.
        wait_health(&site, "backend-3", "down", "doesn't match the body")?;
        let asked = site.web[2].access_log()?;
        let check = asked.iter().find(|line| line.uri == "/healthz?deep=1");
        ensure!(
            check.is_some_and(|line| line.status == 200),
            "the server saw {asked:?}"
        );

        by_http(&mut site.config, "expect: {headers: {x-server: backend}}");
        site.reload()?;
        wait_health(&site, "backend-3", "up", "status 200")?;
        site.web[1].kill9()?;
        wait_health(&site, "backend-2", "down", "connection refused")?;

        by_http(&mut site.config, "expect: {status: [\"300-399\", 404]}");
        site.reload()?;
        wait_health(
            &site,
            "backend-1",
            "down",
            "status 200; expected 300-399, 404",
        )
    });
}
