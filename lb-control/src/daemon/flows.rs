//! The sample's flows for `lbctl flows`.

use std::net::{IpAddr, SocketAddr};

use super::names;
use crate::{
    dataplane::{plane::Plane, stats::SampledFlow},
    model::Model,
    status::request::{Flow, FlowFilter, FlowsAnswer, Refusal},
};

/// Flows listed when nothing else is said.
const DEFAULT_LIMIT: usize = 1_000;

/// Answers a filter.
///
/// # Errors
/// It names something that doesn't exist, or the sample can't be read.
pub fn flows(
    plane: &mut Plane,
    model: &Model,
    filter: &FlowFilter,
    sample_mask: u32,
) -> Result<FlowsAnswer, Refusal> {
    if let Some(name) = &filter.service
        && !model.services.iter().any(|s| s.name == *name)
    {
        let known = model.services.iter().map(|s| s.name.as_str());
        return Err(Refusal::because(format!(
            "no service \"{name}\"; {}",
            names::suggestion(name, known)
        )));
    }
    let addresses = match &filter.backend {
        Some(name) => Some(addresses(model, name)?),
        None => None,
    };
    let limit = filter.limit.unwrap_or(DEFAULT_LIMIT);
    let wanted = |flow: &SampledFlow| {
        filter
            .service
            .as_ref()
            .is_none_or(|name| *name == flow.service)
            && filter.client.is_none_or(|client| client == flow.source)
            && addresses
                .as_ref()
                .is_none_or(|some| some.contains(&flow.backend))
    };
    let mut sampled = plane
        .sample(limit.saturating_add(1), wanted)
        .map_err(|error| Refusal::because(error.to_string()))?;
    let truncated = sampled.len() > limit;
    sampled.truncate(limit);
    Ok(FlowsAnswer {
        sampled_one_in: u64::from(sample_mask) + 1,
        truncated,
        flows: sampled.iter().map(|flow| describe(model, flow)).collect(),
    })
}

/// Addresses of the backends of that name, in any pool unless one is given.
fn addresses(model: &Model, name: &str) -> Result<Vec<IpAddr>, Refusal> {
    let (pool, backend) = match name.split_once('/') {
        Some((pool, backend)) => {
            names::backend(model, pool, backend).map_err(Refusal::because)?;
            (Some(pool), backend)
        }
        None => (None, name),
    };
    let all = || {
        model
            .pools
            .iter()
            .filter(|(name, _)| pool.is_none_or(|wanted| wanted == *name))
            .flat_map(|(_, pool)| &pool.backends)
    };
    let found: Vec<IpAddr> = all()
        .filter(|b| b.name == backend)
        .map(|b| b.address)
        .collect();
    if found.is_empty() {
        let suggestion = names::suggestion(backend, all().map(|b| b.name.as_str()));
        return Err(Refusal::because(format!(
            "no backend \"{backend}\"; {suggestion}"
        )));
    }
    Ok(found)
}

fn describe(model: &Model, flow: &SampledFlow) -> Flow {
    let service = model
        .services
        .iter()
        .find(|service| service.name == flow.service);
    let backend = service.and_then(|service| {
        let mut backends = model.backends_of(service);
        let (pool, backend) = backends.find(|(_, b)| b.address == flow.backend)?;
        Some(format!("{pool}/{}", backend.name))
    });
    Flow {
        client: SocketAddr::new(flow.source, flow.source_port),
        destination: SocketAddr::new(flow.destination, flow.destination_port),
        protocol: match flow.protocol {
            6 => "tcp".into(),
            17 => "udp".into(),
            other => other.to_string(),
        },
        service: flow.service.clone(),
        backend: backend.unwrap_or_else(|| flow.backend.to_string()),
        state: if flow.closing { "closing" } else { "open" }.into(),
        age_seconds: u64::from(flow.age_seconds),
        idle_seconds: u64::from(flow.idle_seconds),
    }
}
