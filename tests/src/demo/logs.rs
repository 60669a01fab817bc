//! The client's story against the servers'.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use anyhow::{Result, ensure};

use super::{
    ledger::{Exchange, Way},
    scene::Scene,
};
use crate::process::wait_ok;

/// Where a request was logged: the server's name and the status it gave.
type Logged = HashMap<String, Vec<(String, u16)>>;

/// What disagrees, in words; empty when all agree.
///
/// Each answered request has to be in the log of the server that answered it
/// and nowhere else, with status 200, and there must be nothing else in the
/// logs. A request that got no answer may be in the log of `killed` alone.
pub fn differences(scene: &Scene, killed: &str) -> Result<Vec<String>> {
    let exchanges = scene.ledger.since(0);
    let answered = exchanges.iter().filter(|e| e.answer.is_ok()).count();
    // A server writes its line after the answer has gone out.
    let logged = wait_ok("the servers' logs", Duration::from_secs(3), || {
        let logged = read(scene)?;
        ensure!(
            logged.len() >= answered,
            "{} requests logged, {answered} answered",
            logged.len()
        );
        Ok(logged)
    });
    let logged = logged.or_else(|_| read(scene))?;
    Ok(compare(&exchanges, logged, killed))
}

fn read(scene: &Scene) -> Result<Logged> {
    let mut logged = Logged::new();
    let mut add = |server: &str, lines: Vec<crate::servers::AccessLogLine>| {
        for line in lines {
            let place = logged.entry(line.id).or_default();
            place.push((server.to_owned(), line.status));
        }
    };
    for (server, lines) in &scene.old_logs {
        add(server, lines.clone());
    }
    for (server, nginx) in &scene.nginx {
        if let Some(nginx) = nginx {
            add(server, nginx.access_log()?);
        }
    }
    Ok(logged)
}

fn compare(exchanges: &[Exchange], mut logged: Logged, killed: &str) -> Vec<String> {
    let mut differences = Vec::new();
    let mut by_client: BTreeMap<&str, usize> = BTreeMap::new();
    let mut by_logs: BTreeMap<String, usize> = BTreeMap::new();
    for lines in logged.values() {
        for (server, _) in lines {
            *by_logs.entry(server.clone()).or_default() += 1;
        }
    }
    let mut unanswered_but_logged = 0;
    for exchange in exchanges {
        let lines = logged.remove(&exchange.id).unwrap_or_default();
        match &exchange.answer {
            Ok(server) => {
                *by_client.entry(server).or_default() += 1;
                if lines != [(server.clone(), 200)] {
                    differences.push(format!(
                        "{}: the client got an answer of {server}, the logs say {lines:?}",
                        exchange.id
                    ));
                }
            }
            Err(why) => {
                let cut_off = exchange.way == Way::Held || exchange.way == Way::New;
                let at_killed = lines.iter().all(|(server, _)| server == killed);
                if !(lines.is_empty() || cut_off && at_killed && lines.len() == 1) {
                    differences.push(format!(
                        "{}: the client got no answer ({why}), the logs say {lines:?}",
                        exchange.id
                    ));
                }
                unanswered_but_logged += lines.len();
            }
        }
    }
    for (id, lines) in logged {
        differences.push(format!(
            "{id:?}: the client sent no such request, the logs say {lines:?}"
        ));
    }
    let (client, logs): (usize, usize) = (by_client.values().sum(), by_logs.values().sum());
    if differences.is_empty() && client + unanswered_but_logged != logs {
        differences.push(format!(
            "the client counts {client} answers, the logs {logs}"
        ));
    }
    differences
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn exchange(id: &str, answer: Result<&str, &str>) -> Exchange {
        Exchange {
            id: id.into(),
            way: Way::New,
            begun: Instant::now(),
            answer: answer.map(str::to_owned).map_err(str::to_owned),
        }
    }

    fn logs(lines: &[(&str, &str)]) -> Logged {
        let mut logged = Logged::new();
        for (id, server) in lines {
            let place = logged.entry((*id).into()).or_default();
            place.push(((*server).into(), 200));
        }
        logged
    }

    fn differences(asked: &[(&str, Result<&str, &str>)], logged: &[(&str, &str)]) -> usize {
        let exchanges: Vec<_> = asked.iter().map(|(id, a)| exchange(id, *a)).collect();
        compare(&exchanges, logs(logged), "b").len()
    }

    #[test]
    fn the_same_story_has_no_differences() {
        let asked = [("1", Ok("a")), ("2", Ok("b")), ("3", Err("reset"))];
        assert_eq!(differences(&asked, &[("1", "a"), ("2", "b")]), 0);
        assert_eq!(
            differences(&asked, &[("1", "a"), ("2", "b"), ("3", "b")]),
            0
        );
    }

    #[test]
    fn every_kind_of_difference_is_told() {
        assert_eq!(differences(&[("1", Ok("a"))], &[("1", "b")]), 1);
        assert_eq!(differences(&[("1", Ok("a"))], &[]), 1);
        assert_eq!(differences(&[("1", Ok("a"))], &[("1", "a"), ("1", "a")]), 1);
        assert_eq!(differences(&[("1", Err("reset"))], &[("1", "a")]), 1);
        assert_eq!(differences(&[], &[("1", "a")]), 1);
    }
}
