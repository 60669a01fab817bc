//! Another configuration comes into force, or is refused.

use super::{Daemon, METRICS};
use crate::{
    api::{self, listen},
    daemon::{conditions::Now, settings, sync},
    status::request::{Refusal, ReloadAnswer},
};

impl Daemon {
    pub(super) async fn reload(&mut self) -> Result<ReloadAnswer, Refusal> {
        let result = self.try_reload().await;
        self.controller.reloaded(&result, Now::read());
        match &result {
            Ok(answer) => tracing::info!(
                file = answer.file,
                slots_moved = answer.slots_moved,
                "configuration reloaded"
            ),
            Err(refusal) => {
                tracing::error!("reload refused, the configuration before stays in force:");
                for error in &refusal.errors {
                    tracing::error!("{error}");
                }
            }
        }
        self.tick();
        result
    }

    async fn try_reload(&mut self) -> Result<ReloadAnswer, Refusal> {
        let file = self.controller.in_force.file.clone();
        let candidate = self.controller.candidate(&file)?;
        let links = sync::settings(&candidate.model).map_err(Refusal::because)?;
        settings::establish(&candidate.model, &self.state_dir).map_err(Refusal::because)?;
        let wanted = candidate.model.metrics;
        let rebind = wanted != self.controller.model.metrics;
        let metrics = match wanted.filter(|_| rebind) {
            Some(address) => Some(
                listen::MetricsListener::serve(address, api::observe(self.handle.clone(), METRICS))
                    .await
                    .map_err(|error| Refusal::because(error.to_string()))?,
            ),
            None => None,
        };
        self.probe_way
            .establish(&candidate.model, &mut self.controller, &self.health)
            .map_err(Refusal::because)?;
        let applied = self.controller.take_over(candidate, Now::read())?;
        if rebind {
            self.metrics = metrics;
        }
        let model = &self.controller.model;
        if let Err(error) = self.peers.follow(links) {
            tracing::error!(%error, "there are no links to peers");
        }
        let plane = &self.controller.data_path;
        if let Err(error) = self.routers.follow(model, plane, &self.peers) {
            tracing::error!(%error, "virtual routers stay as they were");
        }
        self.health.update(model);
        let notes = self
            .controller
            .admin
            .strangers(model)
            .into_iter()
            .map(|name| {
                format!(
                    "{name} is not in the configuration any more; an operator's decision about it is kept"
                )
            })
            .collect();
        let answer = ReloadAnswer {
            file: file.display().to_string(),
            services: model.services.len(),
            slots_moved: applied.slots_moved,
            notes,
        };
        self.follow_links();
        Ok(answer)
    }
}
