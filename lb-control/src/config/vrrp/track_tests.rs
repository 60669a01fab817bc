use super::*;
use crate::config::parse;

fn model(entry: &str) -> Result<Model, String> {
    let text = format!(
        "interfaces: [{{name: eth0}}, {{name: eth1}}]\n\
         pools: {{web: {{backends: [{{name: a, address: 10.0.1.11}}, {{name: b, address: 10.0.1.12}}]}}}}\n\
         services: [{{name: shop, address: 10.0.0.1, port: 80, protocol: tcp, forwarding: l2-dsr, pool: web}}]\n\
         vrrp:\n- {{vrid: 51, interface: eth0, addresses: [10.0.0.1]{entry}}}\n"
    );
    parse(&text, "f.yaml").map_err(|errors| errors.to_string())
}

fn router(entry: &str) -> Vrrp {
    let mut model = model(entry).unwrap_or_else(|errors| panic!("{entry}\n{errors}"));
    model.vrrp.remove(0)
}

#[test]
fn each_kind_of_tracker_has_its_own_default() {
    let track = router(
        ", track: {interfaces: [eth1], scripts: [{command: [/usr/local/bin/uplink, -q]}], services: [shop]}",
    )
    .track;
    assert_eq!(track.interfaces[0].effect, Effect::Fault);
    let script = &track.scripts[0];
    assert_eq!(
        (script.name.as_str(), script.effect),
        ("uplink", Effect::Fault)
    );
    assert_eq!(script.script.exec.user, "nobody");
    assert_eq!(script.script.interval, Duration::from_secs(2));
    assert_eq!(script.script.timeout, Duration::from_secs(1));
    assert_eq!((script.script.rise, script.script.fall), (2, 3));
    // Not a fault: all nodes would fail when all servers do.
    let service = &track.services[0];
    assert_eq!(service.effect, Effect::Weight(-20));
    assert_eq!(service.minimum_backends, 1);
}

#[test]
fn trackers_have_weights() {
    let track = router(
        ", track: {interfaces: [{interface: eth1, weight: -254}], \
         scripts: [{name: up, command: [/bin/true], weight: 254}], \
         services: [{service: shop, weight: fault, minimum_backends: 2}]}",
    )
    .track;
    assert_eq!(track.interfaces[0].effect, Effect::Weight(-254));
    assert_eq!(track.scripts[0].effect, Effect::Weight(254));
    assert_eq!(track.services[0].effect, Effect::Fault);
    assert_eq!(track.services[0].minimum_backends, 2);
}

#[test]
fn who_is_told_has_a_name() {
    assert_eq!(router("").notify, None);
    let notify = router(", notify: {fifo: /run/vrrp.fifo}").notify.unwrap();
    assert_eq!(notify.name, "vrrp-51");
    assert_eq!(notify.command, None);
    let notify = router(", notify: {name: VI_1, command: [/bin/tell], user: root, timeout: 3s}");
    let notify = notify.notify.unwrap();
    assert_eq!(notify.name, "VI_1");
    assert_eq!(notify.command.unwrap().user, "root");
    assert_eq!(notify.timeout, Duration::from_secs(3));
}

#[test]
fn what_makes_no_sense_is_refused_with_its_place() {
    for (entry, expected) in [
        (
            ", track: {services: [shpo]}",
            "vrrp[0].track.services[0]: there is no service \"shpo\"; did you mean \"shop\"?",
        ),
        (
            ", track: {services: [{service: shop, minimum_backends: 3}]}",
            "vrrp[0].track.services[0]: minimum_backends is 3, and pool \"web\" has 2 backends",
        ),
        (
            ", track: {services: [shop, shop]}",
            "vrrp[0].track.services[1]: shop is watched twice",
        ),
        (
            ", track: {services: [{service: shop, weight: 255}]}",
            "vrrp[0].track.services[0].weight: found `255`; allowed: fault, -254 to -1",
        ),
        (
            ", track: {scripts: [{command: [/bin/true], weight: 0}]}",
            "vrrp[0].track.scripts[0].weight: found `0`; a weight of 0 would change nothing",
        ),
        (
            ", track: {scripts: [{command: [true]}]}",
            "vrrp[0].track.scripts[0].command[0]: found `true`; allowed: text",
        ),
        (
            ", track: {scripts: [{command: [uplink]}]}",
            "vrrp[0].track.scripts[0].command: the program \"uplink\" has to be an absolute path",
        ),
        (
            ", track: {scripts: [{interval: 1s}]}",
            "vrrp[0].track.scripts[0]: `command` is missing",
        ),
        (
            ", track: {scripts: [{command: [/bin/true], interval: 1s, timeout: 2s}]}",
            "vrrp[0].track.scripts[0]: timeout 2s is longer than interval 1s",
        ),
        (
            ", track: {scripts: [{command: [/bin/true]}, {command: [/bin/true, x]}]}",
            "vrrp[0].track.scripts[1]: true is the name of an earlier script",
        ),
        (
            ", track: {scripts: [{command: [/bin/true], dynamic: true}]}",
            "unknown key `dynamic`",
        ),
        (
            ", track: {interfaces: [eth1, {interface: eth7, weight: 1}]}",
            "vrrp[0].track.interfaces[1]: eth7 is not among `interfaces`",
        ),
        (
            ", priority: 255, track: {services: [shop]}",
            "vrrp[0].track.services[0]: who has the addresses itself keeps priority 255",
        ),
        (", notify: {}", "vrrp[0].notify: tells nobody"),
        (
            ", notify: {fifo: /run/f, user: root}",
            "vrrp[0].notify.user: belongs to a `command`",
        ),
        (
            ", notify: {fifo: run/f}",
            "vrrp[0].notify.fifo: found \"run/f\"; allowed: an absolute path",
        ),
        (
            ", notify: {fifo: /run/f, name: a b}",
            "vrrp[0].notify.name: found \"a b\"; allowed: a name",
        ),
    ] {
        let errors = model(entry).err().unwrap_or_default();
        assert!(
            errors.contains(expected),
            "{entry}\n  found    {errors}\n  expected {expected}"
        );
        // With its line.
        assert!(errors.contains("f.yaml:5:"), "{errors}");
    }
}
