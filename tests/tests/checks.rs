//! Health checks of real servers.

use anyhow::ensure;
use lb_tests::{
    check,
    config::Config,
    site::Site,
    topology::{Kind, Options},
};

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

#[test]
fn an_http_check_believes_the_right_answer_alone() {
    check(|| {
        let mut site = Site::full(Kind::NatTwoArmed, &Options::default(), |config| {
            by_http(config, "expect: {body_regex: \"^backend-[12]\"}");
        })?;
        for backend in ["backend-1", "backend-2"] {
            site.wait_health(SERVICE, backend, "up", "status 200")?;
        }
        // It serves, and says the wrong thing.
        site.wait_health(SERVICE, "backend-3", "down", "doesn't match the body")?;
        let asked = site.web[2].access_log()?;
        let check = asked.iter().find(|line| line.uri == "/healthz?deep=1");
        ensure!(
            check.is_some_and(|line| line.status == 200),
            "the server saw {asked:?}"
        );

        by_http(&mut site.config, "expect: {headers: {x-server: backend}}");
        site.reload()?;
        site.wait_health(SERVICE, "backend-3", "up", "status 200")?;
        site.web[1].kill9()?;
        site.wait_health(SERVICE, "backend-2", "down", "connection refused")?;

        by_http(&mut site.config, "expect: {status: [\"300-399\", 404]}");
        site.reload()?;
        site.wait_health(
            SERVICE,
            "backend-1",
            "down",
            "status 200; expected 300-399, 404",
        )
    });
}
