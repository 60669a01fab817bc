//! Runs the scripts that virtual routers watch, each on a task of its own, one run
//! after the other.

#![allow(clippy::disallowed_methods, reason = "a shell")]

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    task::AbortHandle,
    time::{self, MissedTickBehavior},
};

use crate::{health::program, model::Script, vrrp::trackers::Streak};

/// The running scripts. Dropping it ends them.
#[derive(Debug, Default)]
pub struct Scripts {
    tasks: BTreeMap<Script, Task>,
    changed: Arc<Notify>,
}

#[derive(Debug)]
struct Task {
    standing: Arc<Mutex<Standing>>,
    handle: AbortHandle,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

/// What is known of a script.
#[derive(Clone, Debug, Default)]
struct Standing {
    streak: Streak,
    /// The last result in words; empty before the first one.
    words: String,
}

/// What a run says.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Passed(String),
    Failed(String),
    /// Nothing: it could not be run, for reasons of our own.
    NotMade(String),
}

impl Scripts {
    /// Those that are wanted are run from now on, each once however often it is
    /// wanted. Those that stay the same keep what is known of them.
    pub fn follow<'a>(&mut self, wanted: impl Iterator<Item = &'a Script> + Clone) {
        self.tasks
            .retain(|script, _| wanted.clone().any(|other| other == script));
        for script in wanted {
            if self.tasks.contains_key(script) {
                continue;
            }
            let standing = Arc::<Mutex<Standing>>::default();
            let task = watch(
                script.clone(),
                Arc::clone(&standing),
                Arc::clone(&self.changed),
            );
            let handle = tokio::spawn(task).abort_handle();
            let task = Task { standing, handle };
            self.tasks.insert(script.clone(), task);
        }
    }

    /// Whether it is well, and its last result in words.
    pub fn standing(&self, script: &Script) -> (bool, String) {
        let task = self.tasks.get(script);
        let known = task.map(|task| lock(&task.standing).clone());
        let known = known.unwrap_or_default();
        let words = match known.words.as_str() {
            "" => "no result yet".to_owned(),
            words => words.to_owned(),
        };
        (known.streak.is_ok(), words)
    }

    /// Tells of changes.
    pub fn changes(&self) -> Arc<Notify> {
        Arc::clone(&self.changed)
    }
}

fn lock(standing: &Mutex<Standing>) -> MutexGuard<'_, Standing> {
    standing.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn watch(script: Script, standing: Arc<Mutex<Standing>>, changed: Arc<Notify>) {
    let mut turns = time::interval(script.interval);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        turns.tick().await;
        let outcome = run(&script).await;
        let has_changed = {
            let mut known = lock(&standing);
            let was_made = !matches!(outcome, Outcome::NotMade(_));
            let passed = matches!(outcome, Outcome::Passed(_));
            known.words = match outcome {
                Outcome::Passed(words) | Outcome::Failed(words) | Outcome::NotMade(words) => words,
            };
            was_made && known.streak.observe(passed, script.rise, script.fall)
        };
        if has_changed {
            changed.notify_one();
        }
    }
}

async fn run(script: &Script) -> Outcome {
    let running = program::run(&script.exec.command, &script.exec.user, &[]);
    let (status, output) = match time::timeout(script.timeout, running).await {
        Ok(Ok(ended)) => ended,
        Ok(Err(why)) => return Outcome::NotMade(format!("can't be run: {why}")),
        Err(_) => return Outcome::Failed(took_too_long(script.timeout)),
    };
    let mut words = match status.code() {
        Some(code) => format!("exit status {code}"),
        None => status.to_string(),
    };
    if !output.is_empty() {
        words = format!("{words}: {output}");
    }
    if status.success() {
        Outcome::Passed(words)
    } else {
        Outcome::Failed(words)
    }
}

/// Of what was killed at its time-out.
pub(super) fn took_too_long(timeout: Duration) -> String {
    format!("killed after {timeout:?}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{daemon::testing, model::Exec};

    fn script(text: &str) -> Script {
        Script {
            exec: Exec {
                command: ["/bin/sh", "-c", text].map(str::to_owned).to_vec(),
                user: testing::user(),
                dynamic: false,
            },
            interval: Duration::from_millis(20),
            timeout: Duration::from_secs(20),
            rise: 2,
            fall: 3,
        }
    }

    #[tokio::test]
    async fn a_result_is_the_exit_status_or_the_time_out() {
        assert_eq!(
            run(&script("echo fine")).await,
            Outcome::Passed("exit status 0: fine".into())
        );
        assert_eq!(
            run(&script("exit 3")).await,
            Outcome::Failed("exit status 3".into())
        );
        let slow = Script {
            timeout: Duration::from_millis(50),
            ..script("sleep 1000")
        };
        assert_eq!(
            run(&slow).await,
            Outcome::Failed("killed after 50ms".into())
        );
        let mut missing = script("");
        missing.exec.command = vec!["/nonexistent/check".into()];
        let outcome = run(&missing).await;
        assert!(
            matches!(&outcome, Outcome::NotMade(words) if words.contains("/nonexistent/check"))
        );
    }

    /// Waits until a script is as it should be.
    async fn wait(scripts: &Scripts, script: &Script, ok: bool) -> String {
        let changes = scripts.changes();
        time::timeout(Duration::from_secs(60), async {
            loop {
                match scripts.standing(script) {
                    (now, words) if now == ok => return words,
                    _ => changes.notified().await,
                }
            }
        })
        .await
        .unwrap()
    }

    #[tokio::test]
    async fn a_script_counts_as_well_until_it_has_failed_often_enough() {
        let directory = testing::Directory::new("scripts");
        let flag = directory.0.join("flag");
        let runs = directory.0.join("runs");
        let script = script(&format!(
            "echo x >> {}; test -e {}",
            runs.display(),
            flag.display()
        ));
        let mut scripts = Scripts::default();
        scripts.follow([&script, &script].into_iter());
        assert_eq!(
            scripts.standing(&script),
            (true, "no result yet".to_owned())
        );
        assert_eq!(wait(&scripts, &script, false).await, "exit status 1");
        // Wanted twice, and run once for both.
        let count = std::fs::read_to_string(&runs).unwrap().lines().count();
        assert_eq!(count, 3);
        std::fs::write(&flag, "").unwrap();
        wait(&scripts, &script, true).await;
        // A reload that keeps it keeps what is known.
        std::fs::remove_file(&flag).unwrap();
        wait(&scripts, &script, false).await;
        scripts.follow(std::iter::once(&script));
        assert!(!scripts.standing(&script).0);
        scripts.follow(std::iter::empty());
        assert!(scripts.standing(&script).0);
    }
}
