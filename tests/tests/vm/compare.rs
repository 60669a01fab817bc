//! The same requests through the kernel's own load balancer (IPVS) and through
//! this one are answered alike.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    ipvs,
    machine::in_machine,
    process::wait_ok,
    servers::Nginx,
    site::{Site, WEB, dig, family},
    topology::{Kind, Options, Topology},
};

use crate::{nothing_was_dropped, unhurried};

/// Requests to each VIP.
const REQUESTS: usize = 16;

/// What a client can tell of an answer: the status line, the headers but the
/// date, the body.
type Answer = (String, BTreeSet<String>, String);

/// What there is to compare.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    /// Every different answer: each server has one of its own, for each path.
    pages: BTreeSet<Answer>,
    /// Servers that answered over UDP.
    names: BTreeSet<String>,
    /// Server, client's address, address and path asked for, as logged.
    logged: BTreeSet<(String, String, String)>,
    /// Requests each method needed.
    requests: usize,
}

/// Asks for pages and names and collects what came back, and what the servers
/// logged of it.
fn ask(t: &Topology, web: &[Nginx], round: &str) -> Result<Seen> {
    let mut seen = Seen::default();
    for vip in t.vips() {
        let name = family(vip);
        let target = SocketAddr::new(vip, WEB);
        for path in ["page", "missing/big"] {
            let url = format!("http://{target}/{path}");
            let id = format!("X-Request-Id: {round}");
            let mut argv = vec!["curl", "-sS", "-i", "--max-time", "60"];
            argv.extend(["-H", "Connection: close", "-H", &id]);
            argv.extend(std::iter::repeat_n(url.as_str(), REQUESTS));
            let text = t.client.ns.exec(&argv)?;
            let pages: Vec<_> = text.split("HTTP/1.1 ").skip(1).collect();
            ensure!(
                pages.len() == REQUESTS,
                "{round} {name}: {} answers to {REQUESTS} requests:\n{text}",
                pages.len()
            );
            seen.requests += pages.len();
            for page in pages {
                seen.pages.insert(answer(page)?);
            }
        }
        for _ in 0..6 {
            seen.names.insert(dig(&t.client.ns, vip)?);
        }
    }
    for (backend, web) in t.backends.iter().zip(web) {
        for line in web.access_log()?.into_iter().filter(|l| l.id == round) {
            seen.logged
                .insert((backend.name.clone(), line.peer, line.uri));
        }
    }
    Ok(seen)
}

fn answer(text: &str) -> Result<Answer> {
    let (head, body) = text
        .split_once("\r\n\r\n")
        .with_context(|| format!("no end of the header in:\n{text}"))?;
    let mut lines = head.lines();
    let status = lines.next().unwrap_or_default().to_owned();
    let headers = lines
        .filter(|line| !line.starts_with("Date:"))
        .map(str::to_owned)
        .collect();
    Ok((status, headers, body.to_owned()))
}

fn as_ipvs_does(kind: Kind) -> Result<()> {
    let options = Options {
        backends: 2,
        ..Options::default()
    };
    let site = Site::full(kind, &options, unhurried)?;
    let ours = ask(&site.topology, &site.web, "lbctl")?;
    nothing_was_dropped(&site)?;

    let Site {
        daemon,
        web,
        echo,
        topology: t,
        ..
    } = site;
    drop(daemon);
    ipvs::balance(&t)?;
    let theirs = ask(&t, &web, "ipvs")?;
    for vip in t.vips() {
        // Or the comparison is with something else. What IPVS shows is as old
        // as its estimator's last round, which is one in two seconds.
        wait_ok("IPVS to count", Duration::from_secs(5), || {
            let balanced = ipvs::balanced(&t, vip)?;
            ensure!(
                balanced >= 2 * REQUESTS as u64,
                "{vip}: IPVS balanced {balanced} only"
            );
            Ok(())
        })?;
    }
    let servers: BTreeMap<_, _> = t.backends.iter().map(|b| (&b.name, ())).collect();
    ensure!(
        theirs.names.len() == servers.len() && theirs.logged.len() >= 2 * servers.len(),
        "not every server was asked: {theirs:#?}"
    );
    println!(
        "{kind:?}: {} answers alike, {} different ones, {} servers over UDP",
        ours.requests,
        ours.pages.len(),
        ours.names.len()
    );
    ensure!(ours == theirs, "ours: {ours:#?}\nIPVS's: {theirs:#?}");
    drop(echo);
    Ok(())
}

#[test]
fn direct_server_return_answers_as_ipvs_does() {
    in_machine(|| as_ipvs_does(Kind::Dsr));
}

#[test]
fn nat_answers_as_ipvs_does() {
    in_machine(|| as_ipvs_does(Kind::NatTwoArmed));
}
