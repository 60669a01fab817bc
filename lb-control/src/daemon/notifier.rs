//! Tells programs and FIFOs of changes of virtual routers' states. Nothing here is
//! waited for by anybody but what comes after it in the same queue.

#![allow(clippy::disallowed_methods, reason = "a shell")]

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify as Wake, mpsc, oneshot},
    task::{AbortHandle, JoinHandle},
    time,
};

use super::fifo::{Fifo, Wrote};
use crate::{
    health::program,
    model::{Exec, Model, Notify, Vrrp},
    status::NotifyStatus,
    vrrp::{
        notify::{Event, Queue, StateChange, Who},
        thread::Listener,
    },
};

/// Runs of a command that wait for those before them; the oldest is dropped.
const MOST_WAITING: usize = 64;

/// A virtual router of one family: its VRID, and whether it is of IPv4.
pub type Instance = (u8, bool);

/// Who is told of a virtual router.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    notify: Notify,
    group: Option<String>,
    node: String,
    interface: String,
}

enum Message {
    /// Of each virtual router, who is told of it.
    Targets(BTreeMap<Instance, Option<Target>>),
    Changed(StateChange),
    Finish(oneshot::Sender<()>),
}

type Counts = BTreeMap<Instance, NotifyStatus>;

/// The running notifier. Dropping it kills the commands that run.
#[derive(Debug)]
pub struct Notifier {
    messages: mpsc::UnboundedSender<Message>,
    counts: Arc<Mutex<Counts>>,
    task: AbortHandle,
}

impl Drop for Notifier {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Notifier {
    /// Starts it on the current tokio runtime, without anybody to tell.
    pub fn start() -> Self {
        let (messages, receiver) = mpsc::unbounded_channel();
        let counts = Arc::<Mutex<Counts>>::default();
        let dispatcher = Dispatcher {
            counts: Arc::clone(&counts),
            outlets: BTreeMap::new(),
        };
        let task = tokio::spawn(dispatcher.run(receiver)).abort_handle();
        Self {
            messages,
            counts,
            task,
        }
    }

    /// Those of this configuration are told from now on.
    pub fn follow(&self, model: &Model) {
        let instances = model
            .vrrp
            .iter()
            .flat_map(|vrrp| [(vrrp, true), (vrrp, false)]);
        let targets = instances.map(|(vrrp, is_v4)| {
            let instance = (vrrp.vrid, is_v4);
            (instance, target(model, vrrp, is_v4))
        });
        self.tell(Message::Targets(targets.collect()));
    }

    /// For the thread of the virtual routers.
    pub fn listener(&self) -> Listener {
        let messages = self.messages.clone();
        Box::new(move |change| {
            // Whoever has ended tells nobody any more.
            let _ = messages.send(Message::Changed(change));
        })
    }

    /// What became of it.
    pub fn status(&self, instance: Instance) -> Option<NotifyStatus> {
        lock(&self.counts).get(&instance).cloned()
    }

    /// Waits until all that waits has been told, for so long at most.
    pub async fn finish(self, within: Duration) {
        let (done, is_done) = oneshot::channel();
        self.tell(Message::Finish(done));
        if time::timeout(within, is_done).await.is_err() {
            tracing::warn!("commands of `notify` still ran at the end, and are killed");
        }
    }

    fn tell(&self, message: Message) {
        let _ = self.messages.send(message);
    }
}

/// Of both families each has its own name.
fn target(model: &Model, vrrp: &Vrrp, is_v4: bool) -> Option<Target> {
    let has = |is_v4: bool| vrrp.addresses.iter().any(|a| a.is_ipv4() == is_v4);
    let mut notify = vrrp.notify.clone().filter(|_| has(is_v4))?;
    if has(!is_v4) {
        notify.name += if is_v4 { "-v4" } else { "-v6" };
    }
    Some(Target {
        notify,
        group: vrrp.sync_group.clone(),
        node: model.node.clone(),
        interface: vrrp.interface.clone(),
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Dispatcher {
    counts: Arc<Mutex<Counts>>,
    outlets: BTreeMap<Instance, Outlet>,
}

struct Outlet {
    target: Target,
    fifo: Option<Fifo>,
    command: Option<Runs>,
    /// From the configuration.
    is_gone: bool,
}

/// The runs of a command, one after the other.
struct Runs {
    waiting: Arc<Waiting>,
    task: JoinHandle<()>,
}

struct Waiting {
    queue: Mutex<(Queue<Event>, bool)>,
    changed: Wake,
}

impl Dispatcher {
    async fn run(mut self, mut messages: mpsc::UnboundedReceiver<Message>) {
        while let Some(message) = messages.recv().await {
            match message {
                Message::Targets(targets) => self.follow(targets),
                Message::Changed(change) => self.changed(&change),
                Message::Finish(done) => {
                    for (_, outlet) in std::mem::take(&mut self.outlets) {
                        outlet.finish().await;
                    }
                    let _ = done.send(());
                }
            }
        }
    }

    fn follow(&mut self, targets: BTreeMap<Instance, Option<Target>>) {
        // Of a virtual router that is gone it is still to be told that it stopped.
        self.outlets.retain(|instance, outlet| {
            let is_gone = !targets.contains_key(instance);
            let was_gone = std::mem::replace(&mut outlet.is_gone, is_gone);
            !(was_gone && is_gone)
        });
        for (instance, target) in targets {
            let Some(target) = target else {
                self.outlets.remove(&instance);
                lock(&self.counts).remove(&instance);
                continue;
            };
            if self.outlets.get(&instance).map(|o| &o.target) == Some(&target) {
                continue;
            }
            lock(&self.counts)
                .entry(instance)
                .or_default()
                .prepare(&target.notify);
            let fifo = target.notify.fifo.clone().map(Fifo::new);
            let command = target.notify.command.clone();
            let command = command.map(|exec| Runs::start(instance, &target, exec, &self.counts));
            let outlet = Outlet {
                target,
                fifo,
                command,
                is_gone: false,
            };
            self.outlets.insert(instance, outlet);
        }
    }

    fn changed(&mut self, change: &StateChange) {
        let event = |name: &str| Event {
            is_group: matches!(change.who, Who::Group(_)),
            name: name.to_owned(),
            state: change.to,
            priority: change.priority,
            reason: change.reason.clone(),
        };
        match &change.who {
            Who::Instance { vrid, is_v4 } => {
                let instance = (*vrid, *is_v4);
                if let Some(outlet) = self.outlets.get_mut(&instance) {
                    let event = event(&outlet.target.notify.name);
                    outlet.tell(instance, event, &self.counts);
                }
            }
            Who::Group(group) => {
                // Members that have the same tell it once.
                let mut told = Vec::new();
                for (instance, outlet) in &mut self.outlets {
                    let Target {
                        notify, group: of, ..
                    } = &outlet.target;
                    let key = (notify.command.clone(), notify.fifo.clone());
                    if of.as_ref() == Some(group) && !told.contains(&key) {
                        told.push(key);
                        outlet.tell(*instance, event(group), &self.counts);
                    }
                }
            }
        }
    }
}

impl NotifyStatus {
    /// With the zeros: a counter that appears late hides its first increase.
    fn prepare(&mut self, notify: &Notify) {
        if notify.command.is_some() {
            for result in ["succeeded", "failed", "timeout", "not_run", "dropped"] {
                self.command.entry(result.to_owned()).or_default();
            }
        }
        if notify.fifo.is_some() {
            for result in ["written", "dropped", "failed"] {
                self.fifo.entry(result.to_owned()).or_default();
            }
        }
    }
}

/// Of those that are still to be told.
fn count(counts: &Mutex<Counts>, instance: Instance, note: impl FnOnce(&mut NotifyStatus)) {
    if let Some(status) = lock(counts).get_mut(&instance) {
        note(status);
    }
}

fn add(results: &mut BTreeMap<String, u64>, result: &str) {
    *results.entry(result.to_owned()).or_default() += 1;
}

impl Outlet {
    fn tell(&mut self, instance: Instance, event: Event, counts: &Mutex<Counts>) {
        if let Some(fifo) = &mut self.fifo {
            let result = match fifo.write(&event.line()) {
                Wrote::Line => "written",
                Wrote::Nothing => "dropped",
                Wrote::Failed => "failed",
            };
            count(counts, instance, |all| add(&mut all.fifo, result));
        }
        if let Some(runs) = &self.command {
            let dropped = runs.waiting.push(event);
            if let Some(dropped) = &dropped {
                tracing::warn!(
                    name = dropped.name,
                    "too many runs of `notify.command` wait; the oldest is dropped"
                );
            }
            count(counts, instance, |all| {
                all.waiting = runs.waiting.len();
                if dropped.is_some() {
                    add(&mut all.command, "dropped");
                }
            });
        }
    }

    async fn finish(mut self) {
        if let Some(runs) = &mut self.command {
            runs.waiting.close();
            let _ = (&mut runs.task).await;
        }
    }
}

impl Drop for Runs {
    /// What waits is still run, unless the whole of it ends.
    fn drop(&mut self) {
        self.waiting.close();
    }
}

impl Runs {
    fn start(instance: Instance, target: &Target, exec: Exec, counts: &Arc<Mutex<Counts>>) -> Self {
        let waiting = Arc::new(Waiting {
            queue: Mutex::new((Queue::new(MOST_WAITING), false)),
            changed: Wake::new(),
        });
        let (own, counts, target) = (Arc::clone(&waiting), Arc::clone(counts), target.clone());
        let task = tokio::spawn(async move {
            while let Some(event) = own.pop().await {
                count(&counts, instance, |all| all.waiting = own.len());
                let result = run(instance, &target, &exec, &event).await;
                count(&counts, instance, |all| add(&mut all.command, result));
            }
        });
        Self { waiting, task }
    }
}

impl Waiting {
    fn push(&self, event: Event) -> Option<Event> {
        let dropped = lock(&self.queue).0.push(event);
        self.changed.notify_one();
        dropped
    }

    fn len(&self) -> usize {
        lock(&self.queue).0.len()
    }

    fn close(&self) {
        lock(&self.queue).1 = true;
        self.changed.notify_one();
    }

    /// The next one; `None` when it is closed and empty.
    async fn pop(&self) -> Option<Event> {
        loop {
            {
                let mut queue = lock(&self.queue);
                if let Some(event) = queue.0.pop() {
                    return Some(event);
                }
                if queue.1 {
                    return None;
                }
            }
            self.changed.notified().await;
        }
    }
}

/// Runs the command for one event; gives the result's name.
async fn run(instance: Instance, target: &Target, exec: &Exec, event: &Event) -> &'static str {
    let argv: Vec<String> = exec
        .command
        .iter()
        .cloned()
        .chain(event.arguments())
        .collect();
    let vrid = instance.0.to_string();
    let environment = [
        ("LB_NODE", target.node.as_str()),
        ("LB_VRID", &vrid),
        ("LB_INTERFACE", &target.interface),
        ("LB_REASON", &event.reason),
    ];
    let running = program::run_without_output(&argv, &exec.user, &environment);
    let (result, words) = match time::timeout(target.notify.timeout, running).await {
        Ok(Ok(status)) if status.success() => return "succeeded",
        Ok(Ok(status)) => ("failed", status.to_string()),
        Ok(Err(why)) => ("not_run", why),
        Err(_) => (
            "timeout",
            super::scripts::took_too_long(target.notify.timeout),
        ),
    };
    tracing::warn!(
        command = argv.join(" "),
        result,
        why = words,
        "`notify.command` went wrong"
    );
    result
}

#[cfg(test)]
#[path = "notifier_tests.rs"]
mod tests;
