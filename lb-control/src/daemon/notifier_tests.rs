use std::{fs, path::Path};

use super::*;
use crate::{
    daemon::testing::{self, Directory},
    vrrp::machine::State,
};

/// A model with a virtual router that tells like this.
fn model(routers: Vec<Vrrp>) -> Model {
    Model {
        vrrp: routers,
        ..testing::model(&["web-1"])
    }
}

fn telling(vrid: u8, script: &str, timeout: Duration) -> Vrrp {
    let command = ["/bin/sh", "-c", script, "sh"].map(str::to_owned).to_vec();
    Vrrp {
        vrid,
        notify: Some(Notify {
            name: format!("VI_{vrid}"),
            command: Some(Exec {
                command,
                user: testing::user(),
                dynamic: false,
            }),
            timeout,
            fifo: None,
        }),
        ..testing::vrrp(&["192.0.2.10"])
    }
}

fn change(vrid: u8, to: State) -> StateChange {
    StateChange {
        who: Who::Instance { vrid, is_v4: true },
        to,
        priority: 150,
        reason: "nobody advertises".into(),
    }
}

const LONG: Duration = Duration::from_secs(60);

/// Appends its arguments to a file.
fn noting(file: &Path) -> String {
    format!("echo \"$* $LB_VRID $LB_REASON\" >> {}", file.display())
}

fn results(status: &NotifyStatus) -> Vec<(&str, u64)> {
    let all = status.command.iter().filter(|(_, count)| **count > 0);
    all.map(|(name, count)| (name.as_str(), *count)).collect()
}

#[tokio::test]
async fn every_change_runs_the_command_in_order_and_the_end_waits_for_it() {
    let directory = Directory::new("notifier-order");
    let file = directory.0.join("told");
    let notifier = Notifier::start();
    notifier.follow(&model(vec![telling(51, &noting(&file), LONG)]));
    let mut listener = notifier.listener();
    for state in [
        State::Backup,
        State::Active,
        State::Fault,
        State::Initialize,
    ] {
        listener(change(51, state));
    }
    // Nobody has asked to be told of this one.
    listener(change(52, State::Active));
    let counts = Arc::clone(&notifier.counts);
    notifier.finish(LONG).await;
    let told = fs::read_to_string(&file).unwrap();
    let expected: Vec<_> = ["BACKUP", "MASTER", "FAULT", "STOP"]
        .map(|state| format!("INSTANCE VI_51 {state} 150 51 nobody advertises"))
        .to_vec();
    assert_eq!(told.lines().collect::<Vec<_>>(), expected);
    let status = lock(&counts).get(&(51, true)).cloned().unwrap();
    assert_eq!(results(&status), [("succeeded", 4)]);
}

#[tokio::test]
async fn a_command_that_hangs_is_killed_and_delays_nobody_else() {
    let directory = Directory::new("notifier-hang");
    let file = directory.0.join("told");
    let notifier = Notifier::start();
    notifier.follow(&model(vec![
        telling(51, "sleep 1000", LONG),
        telling(52, &noting(&file), LONG),
        telling(53, "sleep 1000", Duration::from_millis(20)),
        telling(54, "exit 3", LONG),
    ]));
    let mut listener = notifier.listener();
    for vrid in [51, 52, 53, 54] {
        listener(change(vrid, State::Active));
    }
    let wait = async |instance: Instance, result: &str| {
        let has = || {
            let status = notifier.status(instance);
            status.is_some_and(|status| results(&status) == [(result, 1)])
        };
        while !has() {
            time::sleep(Duration::from_millis(5)).await;
        }
    };
    time::timeout(LONG, async {
        wait((52, true), "succeeded").await;
        wait((53, true), "timeout").await;
        wait((54, true), "failed").await;
    })
    .await
    .unwrap();
    // The first one still hangs, and the end doesn't wait for it for ever.
    assert_eq!(results(&notifier.status((51, true)).unwrap()), []);
    let counts = Arc::clone(&notifier.counts);
    notifier.finish(Duration::from_millis(50)).await;
    assert_eq!(results(lock(&counts).get(&(51, true)).unwrap()), []);
}

#[tokio::test]
async fn more_than_can_wait_drops_the_oldest_and_the_last_is_told() {
    let directory = Directory::new("notifier-full");
    let (file, gate) = (directory.0.join("told"), directory.0.join("gate"));
    let notifier = Notifier::start();
    let script = format!(
        "while ! test -e {}; do sleep 0.01; done; {}",
        gate.display(),
        noting(&file)
    );
    notifier.follow(&model(vec![telling(51, &script, LONG)]));
    let mut listener = notifier.listener();
    for _ in 0..MOST_WAITING + 20 {
        listener(change(51, State::Active));
    }
    listener(change(51, State::Backup));
    let dropped = |status: &NotifyStatus| status.command.get("dropped").copied().unwrap_or(0);
    time::timeout(LONG, async {
        while notifier.status((51, true)).is_none_or(|s| dropped(&s) < 20) {
            time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    // One of them may run already.
    let waiting = notifier.status((51, true)).unwrap().waiting;
    assert!(
        (MOST_WAITING - 1..=MOST_WAITING).contains(&waiting),
        "{waiting}"
    );
    fs::write(&gate, "").unwrap();
    let counts = Arc::clone(&notifier.counts);
    notifier.finish(LONG).await;
    let told = fs::read_to_string(&file).unwrap();
    let (told, dropped) = (
        told.lines().map(str::to_owned).collect::<Vec<_>>(),
        dropped(lock(&counts).get(&(51, true)).unwrap()),
    );
    assert!(told.last().unwrap().contains("BACKUP"), "{told:?}");
    let told = u64::try_from(told.len()).unwrap();
    assert_eq!(told + dropped, u64::try_from(MOST_WAITING).unwrap() + 21);
}

#[tokio::test]
async fn a_group_is_told_once_by_members_that_tell_the_same() {
    let directory = Directory::new("notifier-group");
    let file = directory.0.join("told");
    let grouped = |vrid| Vrrp {
        sync_group: Some("site".into()),
        ..telling(vrid, &noting(&file), LONG)
    };
    let notifier = Notifier::start();
    notifier.follow(&model(vec![grouped(51), grouped(52)]));
    let mut listener = notifier.listener();
    listener(StateChange {
        who: Who::Group("site".into()),
        priority: 0,
        ..change(0, State::Active)
    });
    notifier.finish(LONG).await;
    let told = fs::read_to_string(&file).unwrap();
    assert_eq!(told, "GROUP site MASTER 0 51 nobody advertises\n");
}

#[tokio::test]
async fn who_is_gone_is_still_told_that_it_stopped() {
    let directory = Directory::new("notifier-gone");
    let file = directory.0.join("told");
    let notifier = Notifier::start();
    notifier.follow(&model(vec![telling(51, &noting(&file), LONG)]));
    notifier.follow(&model(vec![]));
    let mut listener = notifier.listener();
    listener(change(51, State::Initialize));
    notifier.finish(LONG).await;
    assert!(fs::read_to_string(&file).unwrap().contains("STOP"));
}

#[tokio::test]
async fn who_is_not_to_be_told_any_more_is_not() {
    let directory = Directory::new("notifier-no-more");
    let file = directory.0.join("told");
    let notifier = Notifier::start();
    let telling = telling(51, &noting(&file), LONG);
    notifier.follow(&model(vec![telling.clone()]));
    let mut listener = notifier.listener();
    listener(change(51, State::Backup));
    notifier.follow(&model(vec![Vrrp {
        notify: None,
        ..telling
    }]));
    listener(change(51, State::Active));
    time::timeout(LONG, async {
        // What came before it is still run.
        while !file.exists() {
            time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    notifier.finish(LONG).await;
    let told = fs::read_to_string(&file).unwrap();
    assert!(!told.contains("MASTER"), "{told}");
}

#[test]
fn each_family_has_a_name_of_its_own() {
    let mut both = telling(51, "", LONG);
    let name = |vrrp: &Vrrp, is_v4| {
        let target = target(&model(vec![]), vrrp, is_v4)?;
        Some(target.notify.name)
    };
    assert_eq!(name(&both, true).as_deref(), Some("VI_51"));
    assert_eq!(name(&both, false), None);
    both.addresses.push("2001:db8::10".parse().unwrap());
    assert_eq!(name(&both, true).as_deref(), Some("VI_51-v4"));
    assert_eq!(name(&both, false).as_deref(), Some("VI_51-v6"));
}
