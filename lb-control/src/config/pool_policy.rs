//! What follows from the states of a pool's backends: its keys.

use std::time::Duration;

use super::{
    reader::{Errors, Fields, Path, nearest},
    value,
};
use crate::model::{Model, Pool, PoolPolicy, WhenAllDown};

/// Keys of a pool that are read here.
pub(super) const KEYS: [&str; 5] = [
    "slow_start",
    "min_available",
    "max_ejected",
    "when_all_down",
    "fallback_pool",
];

/// Reads the keys.
pub(super) fn read(fields: &Fields<'_>) -> PoolPolicy {
    #[derive(Clone, Copy)]
    enum Asked {
        Fail,
        All,
        Fallback,
    }
    let default = PoolPolicy::default();
    let asked = fields.or("when_all_down", Asked::All, |node| {
        let names = [
            ("all", Asked::All),
            ("fail", Asked::Fail),
            ("fallback-pool", Asked::Fallback),
        ];
        value::choice(node, &names, &[])
    });
    let fallback = fields.optional("fallback_pool", value::name);
    let when_all_down = match (asked, fallback) {
        (Asked::Fallback, Some(name)) => WhenAllDown::FallbackPool(name),
        (Asked::Fallback, None) => {
            if let Some(at) = fields.get("when_all_down")
                && fields.get("fallback_pool").is_none()
            {
                at.error("`fallback-pool` needs the other pool's name: give `fallback_pool: NAME`");
            }
            WhenAllDown::All
        }
        (asked, fallback) => {
            if let (Some(_), Some(at)) = (fallback, fields.get("fallback_pool")) {
                at.error("is for `when_all_down: fallback-pool`; set that, or remove it");
            }
            match asked {
                Asked::Fail => WhenAllDown::Fail,
                _ => WhenAllDown::All,
            }
        }
    };
    let hour = Duration::from_secs(3600);
    PoolPolicy {
        slow_start: fields.or(
            "slow_start",
            default.slow_start,
            value::duration(Duration::ZERO..=hour),
        ),
        min_available: fields.or("min_available", default.min_available, value::percent),
        max_ejected: fields.or("max_ejected", default.max_ejected, value::percent),
        when_all_down,
    }
}

/// Reports a fallback that isn't there.
pub(super) fn check(model: &Model, name: &str, pool: &Pool, path: &Path, errors: &Errors) {
    let WhenAllDown::FallbackPool(fallback) = &pool.policy.when_all_down else {
        return;
    };
    let path = path.key("fallback_pool");
    if fallback == name {
        errors.add(path, "is this pool itself; name another");
    } else if !model.pools.contains_key(fallback) {
        let known: Vec<&str> = model.pools.keys().map(String::as_str).collect();
        let hint = match nearest(fallback, &known) {
            Some(near) => format!("did you mean {near:?}?"),
            None => "define it under `pools`".into(),
        };
        errors.add(path, format!("there is no pool {fallback:?}; {hint}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    fn file(policy: &str, check: &str) -> String {
        format!(
            "interfaces: [{{name: eth0}}]\n\
             pools:\n  \
             web: {{backends: [{{name: a, address: 10.0.1.11}}]{check}{policy}}}\n  \
             spare: {{backends: [{{name: b, address: 10.0.1.12}}]}}\n  \
             six: {{backends: [{{name: c, address: \"fd00::1\"}}]}}\n\
             services:\n  - {{name: shop, address: 203.0.113.10, port: 80, protocol: tcp, \
             forwarding: nat, pool: web}}\n"
        )
    }

    #[test]
    fn every_key_is_read_and_has_its_default() {
        let model = parse(&file("", ""), "f.yaml").unwrap();
        assert_eq!(model.pools["web"].policy, PoolPolicy::default());
        let text = ", slow_start: 30s, min_available: 70%, max_ejected: 25, \
                    when_all_down: fallback-pool, fallback_pool: spare";
        let model = parse(&file(text, ""), "f.yaml").unwrap();
        let wanted = PoolPolicy {
            slow_start: Duration::from_secs(30),
            min_available: 70,
            max_ejected: 25,
            when_all_down: WhenAllDown::FallbackPool("spare".into()),
        };
        assert_eq!(model.pools["web"].policy, wanted);
        let used: Vec<_> = model
            .backends_of(&model.services[0])
            .map(|(pool, backend)| (pool, backend.name.as_str()))
            .collect();
        assert_eq!(used, [("web", "a"), ("spare", "b")]);
    }

    #[test]
    fn what_makes_no_sense_is_refused_where_it_stands() {
        for (policy, place, reason) in [
            ("slow_start: 2h", "f.yaml:3:", "a time from 0s to 1h"),
            ("min_available: 101%", "f.yaml:3:", "0% to 100%"),
            ("max_ejected: most", "f.yaml:3:", "0% to 100%"),
            (
                "when_all_down: panic",
                "f.yaml:3:",
                "all, fail, fallback-pool",
            ),
            (
                "when_all_down: fallback-pool",
                "f.yaml:3:",
                "fallback_pool: NAME",
            ),
            ("fallback_pool: spare", "f.yaml:3:", "is for `when_all_down"),
            (
                "when_all_down: fallback-pool, fallback_pool: spaer",
                "f.yaml:3:",
                "did you mean \"spare\"?",
            ),
            (
                "when_all_down: fallback-pool, fallback_pool: web",
                "f.yaml:3:",
                "this pool itself",
            ),
            (
                "when_all_down: fallback-pool, fallback_pool: six",
                "f.yaml:7:",
                "not of the same family",
            ),
        ] {
            let errors = parse(&file(&format!(", {policy}"), ""), "f.yaml")
                .map(|_| policy)
                .unwrap_err()
                .to_string();
            assert!(errors.starts_with(place), "{policy}: {errors}");
            assert!(errors.contains(reason), "{policy}: {errors}");
            assert_eq!(errors.lines().count(), 1, "{errors}");
        }
    }

    #[test]
    fn a_fast_interval_is_shorter_than_the_interval() {
        let check = |more: &str| format!(", health: [{{type: tcp, interval: 2s{more}}}]");
        let model = parse(&file("", &check("")), "f.yaml").unwrap();
        let default = &model.pools["web"].health[0];
        assert_eq!(default.fast_interval, None);
        assert_eq!(default.overloaded_limit, Duration::from_secs(60));
        assert_eq!(default.hold_down_limit, Duration::from_secs(300));
        let errors = parse(&file("", &check(", fast_interval: 3s")), "f.yaml").unwrap_err();
        let text = errors.to_string();
        assert!(
            text.contains("health[0].fast_interval") && text.contains("longer than interval 2s"),
            "{text}"
        );
    }
}
