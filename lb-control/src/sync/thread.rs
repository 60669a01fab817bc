//! Runs the links on a thread of its own.

use std::{
    io,
    io::Read as _,
    os::unix::net::UnixStream,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, Sender},
    },
    thread::JoinHandle,
};

use super::{
    handle::{Sinks, UrgentQueue, Waker},
    settings::Settings,
};
use crate::status::LinkStatus;

/// What the thread is told.
pub(super) enum Command {
    Configure(Settings),
    Stop(Sender<()>),
}

/// What it shares with its handles.
pub(super) struct Parts {
    pub(super) commands: Receiver<Command>,
    pub(super) woken: UnixStream,
    pub(super) waker: Arc<Waker>,
    pub(super) urgent: Arc<UrgentQueue>,
    pub(super) status: Arc<Mutex<Vec<LinkStatus>>>,
    pub(super) sinks: Sinks,
}

pub(super) fn spawn(mut parts: Parts, _settings: Settings) -> io::Result<JoinHandle<()>> {
    parts.woken.set_nonblocking(false)?;
    std::thread::Builder::new()
        .name("sync".into())
        .spawn(move || {
            let mut byte = [0];
            while parts.woken.read(&mut byte).is_ok() {
                parts.waker.rearm();
                let _ = (parts.urgent.take(), &parts.status, &parts.sinks);
                while let Ok(command) = parts.commands.try_recv() {
                    if let Command::Stop(stopped) = command {
                        let _ = stopped.send(());
                        return;
                    }
                }
            }
        })
}
