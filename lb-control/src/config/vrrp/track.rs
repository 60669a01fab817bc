//! `track` and `notify` of a virtual router.

use std::time::Duration;

use super::addresses;

use crate::{
    config::{
        probe,
        reader::{At, Errors, Fields, Path, nearest},
        value::{self, Read},
        yaml::Node,
    },
    model::{
        Effect, Model, Notify, Script, Track, TrackedInterface, TrackedScript, TrackedService, Vrrp,
    },
};

/// The largest change of a priority, as in keepalived.
const HEAVIEST: i64 = 254;
/// What a service takes off the priority by default: it must not be a fault, since
/// all nodes see the same servers, and would all fail with them.
const WEIGHT_OF_SERVICES: Effect = Effect::Weight(-20);
/// Scripts of one virtual router.
const MOST_SCRIPTS: usize = 32;
/// Each is asked ten times a second.
const MOST_REFERENCES: usize = 8;
/// Who has the addresses itself.
const OWNER: u8 = 255;

/// Reads what is watched.
pub(super) fn track(at: &At<'_>) -> Track {
    let known = ["interfaces", "reference_hosts", "scripts", "services"];
    let Some(fields) = at.fields(&known, &[]) else {
        return Track::default();
    };
    let items = |key| fields.get(key).map(At::items).unwrap_or_default();
    let scripts = items("scripts");
    if scripts.len() > MOST_SCRIPTS
        && let Some(at) = fields.get("scripts")
    {
        at.error(format!(
            "found {} scripts; allowed: at most {MOST_SCRIPTS}",
            scripts.len()
        ));
    }
    let references = fields.get("reference_hosts");
    let reference_hosts = references.map(addresses).unwrap_or_default();
    if let Some(at) = references.filter(|_| reference_hosts.len() > MOST_REFERENCES) {
        at.error(format!(
            "found {} reference hosts; allowed: at most {MOST_REFERENCES}",
            reference_hosts.len()
        ));
    }
    Track {
        reference_hosts,
        interfaces: items("interfaces").iter().filter_map(interface).collect(),
        scripts: scripts.iter().filter_map(script).collect(),
        services: items("services").iter().filter_map(service).collect(),
    }
}

fn interface(at: &At<'_>) -> Option<TrackedInterface> {
    if !matches!(at.node, Node::Map(_)) {
        return Some(TrackedInterface {
            name: at.read(value::interface)?,
            effect: Effect::Fault,
        });
    }
    let fields = at.fields(&["interface", "weight"], &[])?;
    Some(TrackedInterface {
        name: fields.required("interface")?.read(value::interface)?,
        effect: fields.or("weight", Effect::Fault, effect),
    })
}

fn script(at: &At<'_>) -> Option<TrackedScript> {
    let known = [
        "name", "command", "user", "interval", "timeout", "rise", "fall", "weight",
    ];
    let fields = at.fields(&known, &[])?;
    let exec = probe::exec(&fields);
    let range = Duration::from_millis(100)..=Duration::from_secs(3600);
    let interval = fields.or("interval", Duration::from_secs(2), value::duration(range));
    let timeout = timeout(&fields, Duration::from_secs(1).min(interval));
    if timeout > interval {
        at.error(format!(
            "timeout {} is longer than interval {}; a script has to end before it is run again: \
             raise the interval or lower the timeout",
            value::shown_duration(timeout),
            value::shown_duration(interval)
        ));
    }
    let name = fields.optional("name", value::name);
    let (rise, fall) = (
        fields.or("rise", 2, value::number(1..=100)),
        fields.or("fall", 3, value::number(1..=100)),
    );
    let effect = fields.or("weight", Effect::Fault, effect);
    let exec = exec?;
    let program = exec.command.first().map_or("", String::as_str);
    let file = program.rsplit('/').next().unwrap_or_default();
    Some(TrackedScript {
        name: name.unwrap_or_else(|| file.to_owned()),
        script: Script {
            exec,
            interval,
            timeout,
            rise,
            fall,
        },
        effect,
    })
}

fn service(at: &At<'_>) -> Option<TrackedService> {
    if !matches!(at.node, Node::Map(_)) {
        return Some(TrackedService {
            service: at.read(value::name)?,
            minimum_backends: 1,
            effect: WEIGHT_OF_SERVICES,
        });
    }
    let fields = at.fields(&["service", "minimum_backends", "weight"], &[])?;
    let minimum = fields.or("minimum_backends", 1, value::number(1..=65_536));
    Some(TrackedService {
        service: fields.required("service")?.read(value::name)?,
        minimum_backends: usize::try_from(minimum).unwrap_or(usize::MAX),
        effect: fields.or("weight", WEIGHT_OF_SERVICES, effect),
    })
}

/// `fault`, or what is added to the priority.
fn effect(node: &Node) -> Read<Effect> {
    let weight = match node {
        Node::Text(text) if text == "fault" => return Ok(Effect::Fault),
        Node::Integer(0) => {
            return Err(
                "a weight of 0 would change nothing; allowed: fault, -254 to -1, \
                        1 to 254"
                    .into(),
            );
        }
        Node::Integer(number) => i64::try_from(*number).ok(),
        _ => None,
    };
    weight
        .filter(|weight| (-HEAVIEST..=HEAVIEST).contains(weight))
        .and_then(|weight| i16::try_from(weight).ok())
        .map(Effect::Weight)
        .ok_or_else(|| {
            "allowed: fault, -254 to -1 (added while it fails), 1 to 254 (added while it doesn't)"
                .into()
        })
}

fn timeout(fields: &Fields<'_>, default: Duration) -> Duration {
    let range = Duration::from_millis(10)..=Duration::from_secs(3600);
    fields.or("timeout", default, value::duration(range))
}

/// Reads who is told; `None` after an error.
pub(super) fn notify(at: &At<'_>, vrid: u8) -> Option<Notify> {
    let known = ["name", "command", "user", "timeout", "fifo"];
    let fields = at.fields(&known, &[])?;
    let has_command = fields.get("command").is_some();
    let command = if has_command {
        Some(probe::exec(&fields)?)
    } else {
        None
    };
    for key in ["user", "timeout"] {
        if let Some(at) = fields.get(key).filter(|_| !has_command) {
            at.error("belongs to a `command`; remove it, or add one");
        }
    }
    let fifo = fields.optional("fifo", value::absolute_path);
    if !has_command && fields.get("fifo").is_none() {
        at.error("tells nobody; give a `command`, a `fifo`, or both");
    }
    Some(Notify {
        name: fields.or("name", format!("vrrp-{vrid}"), called),
        command,
        timeout: timeout(&fields, Duration::from_secs(10)),
        fifo,
    })
}

/// A name as keepalived's instances have it, in a line between quotes.
fn called(node: &Node) -> Read<String> {
    match node {
        Node::Text(text)
            if (1..=63).contains(&text.len())
                && text.bytes().all(|b| b.is_ascii_graphic() && b != b'"') =>
        {
            Ok(text.clone())
        }
        _ => Err("allowed: a name of 1 to 63 characters without spaces and quotes".into()),
    }
}

/// What concerns other parts of the file.
pub(super) fn check(model: &Model, vrrp: &Vrrp, path: &Path, errors: &Errors) {
    let path = path.key("track");
    let track = &vrrp.track;
    let interfaces = path.key("interfaces");
    for (number, tracked) in track.interfaces.iter().enumerate() {
        let name = &tracked.name;
        if !model.interfaces.iter().any(|i| i.name == *name) {
            errors.add(
                interfaces.index(number),
                format!("{name} is not among `interfaces`; only those are followed"),
            );
        }
    }
    let services = path.key("services");
    for (number, tracked) in track.services.iter().enumerate() {
        if let Err(message) = fits(model, tracked) {
            errors.add(services.index(number), message);
        }
    }
    let lists = [
        (
            interfaces,
            named(&track.interfaces, |t| (&t.name, t.effect)),
            "watched twice; remove one",
        ),
        (
            path.key("scripts"),
            named(&track.scripts, |t| (&t.name, t.effect)),
            "the name of an earlier script; give one of them another `name`",
        ),
        (
            services,
            named(&track.services, |t| (&t.service, t.effect)),
            "watched twice; remove one",
        ),
    ];
    for (path, trackers, twice) in lists {
        for (number, (name, effect)) in trackers.iter().enumerate() {
            let mut earlier = trackers.iter().take(number);
            if earlier.any(|(other, _)| other == name) {
                errors.add(path.index(number), format!("{name} is {twice}"));
            }
            if vrrp.priority == OWNER && effect.weight().is_some() {
                errors.add(
                    path.index(number),
                    "who has the addresses itself keeps priority 255; give `weight: fault`, or the \
                     virtual router a lower priority",
                );
            }
        }
    }
}

fn named<T>(all: &[T], of: impl Fn(&T) -> (&String, Effect)) -> Vec<(&str, Effect)> {
    let named = all.iter().map(|tracked| {
        let (name, effect) = of(tracked);
        (name.as_str(), effect)
    });
    named.collect()
}

fn fits(model: &Model, tracked: &TrackedService) -> Result<(), String> {
    let name = &tracked.service;
    let found = model.services.iter().find(|service| service.name == *name);
    let Some(service) = found else {
        let names: Vec<&str> = model.services.iter().map(|s| s.name.as_str()).collect();
        let hint = nearest(name, &names).map(|near| format!("; did you mean {near:?}?"));
        return Err(format!(
            "there is no service {name:?}{}",
            hint.unwrap_or_default()
        ));
    };
    let pool = model.pools.get(&service.pool);
    let backends = pool.map_or(usize::MAX, |pool| pool.backends.len());
    if tracked.minimum_backends > backends {
        return Err(format!(
            "minimum_backends is {}, and pool {:?} has {backends} backends; it would always fail",
            tracked.minimum_backends, service.pool
        ));
    }
    Ok(())
}

#[cfg(test)]
#[path = "track_tests.rs"]
mod tests;
