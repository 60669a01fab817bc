use std::{fs, net::SocketAddr, path::PathBuf, time::Duration};

use nix::unistd::User;

use super::*;
use crate::{
    health::{
        probe::{self, Tools},
        testing::{TIMEOUT, key_of, probe_once},
    },
    model::CheckKind,
};

/// Of whoever runs the tests.
fn user() -> String {
    let user = User::from_uid(nix::unistd::getuid()).unwrap().unwrap();
    user.name
}

fn check(command: &[&str], dynamic: bool) -> CheckKind {
    CheckKind::Exec(Box::new(Exec {
        command: command.iter().map(|text| (*text).to_owned()).collect(),
        user: user(),
        dynamic,
    }))
}

fn target() -> SocketAddr {
    "[2001:db8::7]:80".parse().unwrap()
}

async fn shell(script: &str, dynamic: bool) -> Found {
    probe_once(check(&["/bin/sh", "-c", script], dynamic), target()).await
}

#[tokio::test]
async fn the_exit_status_is_the_result() {
    let found = shell("echo all well; echo more", false).await;
    assert_eq!(found, Found::new(Verdict::Pass, "exit status 0: all well"));
    assert_eq!(
        shell("exit 1", false).await,
        Found::new(Verdict::WrongAnswer, "exit status 1")
    );
    assert_eq!(shell("exit 52", false).await.verdict, Verdict::WrongAnswer);
    assert_eq!(
        shell("exit 52", true).await,
        Found {
            load: Some(Load::Weight(50)),
            ..Found::new(Verdict::Pass, "exit status 52")
        }
    );
    assert_eq!(shell("exit 1", true).await.verdict, Verdict::WrongAnswer);
    assert_eq!(shell("exit 2", true).await.verdict, Verdict::Drain);
    let killed = shell("kill -9 $$", false).await;
    assert_eq!(killed.verdict, Verdict::WrongAnswer, "{killed:?}");
}

#[tokio::test]
async fn the_program_is_told_whom_it_checks_and_nothing_else() {
    let script = "echo $1 $2 $LB_POOL/$LB_BACKEND $LB_ADDRESS $LB_PORT $HOME-$CARGO_PKG_NAME";
    let command = [
        "/bin/sh",
        "-c",
        script,
        "sh",
        "{address}:{port}",
        "{pool}/{backend}",
    ];
    let found = probe_once(check(&command, false), target()).await;
    assert_eq!(
        found.words,
        "exit status 0: 2001:db8::7:80 web/web-1 web/web-1 2001:db8::7 80 -"
    );
}

#[tokio::test]
async fn whatever_cannot_be_run_is_our_own_fault() {
    for (command, user) in [
        ("/nonexistent/check", user()),
        ("/bin/true", "no-such".into()),
    ] {
        let exec = Exec {
            command: vec![command.into()],
            user,
            dynamic: false,
        };
        let found = probe_once(CheckKind::Exec(Box::new(exec)), target()).await;
        assert_eq!(found.verdict, Verdict::NotMade, "{found:?}");
    }
}

#[tokio::test]
async fn much_output_is_read_and_thrown_away() {
    let found = shell("head -c 1000000 /dev/zero | tr '\\0' x", false).await;
    assert_eq!(found.verdict, Verdict::Pass);
    assert!(found.words.len() < 200, "{found:?}");
}

/// Whether a process with this id still runs.
fn lives(id: &str) -> bool {
    let stat = fs::read_to_string(PathBuf::from("/proc").join(id).join("stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

#[tokio::test]
async fn a_program_that_takes_too_long_is_killed_with_all_that_it_started() {
    let file = std::env::temp_dir().join(format!("lbctl-exec-{}", std::process::id()));
    let script = format!(
        "sleep 1000 & echo $! > {0}; sleep 1000 & echo $! >> {0}; wait",
        file.display()
    );
    let found = shell(&script, false).await;
    assert_eq!(found.verdict, Verdict::Timeout);
    assert_eq!(found.words, "no answer within 500ms: running the program");
    let ids = fs::read_to_string(&file).unwrap();
    fs::remove_file(&file).unwrap();
    assert_eq!(ids.lines().count(), 2);
    for id in ids.lines() {
        for _ in 0..100 {
            if lives(id) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        assert!(!lives(id), "process {id} was left behind");
    }
}

#[tokio::test]
async fn who_waits_for_other_programs_says_nothing_of_the_backend() {
    let tools = std::sync::Arc::new(Tools {
        programs: Semaphore::new(0),
        ..Tools::default()
    });
    let key = key_of(check(&["/bin/true"], false), target());
    let found = probe::run(&key, TIMEOUT, &tools, &Trace::start()).await;
    assert_eq!(found.verdict, Verdict::NotMade, "{found:?}");
    assert!(found.words.contains("too many programs"), "{found:?}");
}
