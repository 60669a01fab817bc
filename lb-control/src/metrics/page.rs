//! Families of metrics, as the encoder wants them.

use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

pub(super) type Labels<'a> = [(&'a str, &'a str)];

#[derive(Default)]
pub(super) struct Page {
    pub(super) families: Vec<MetricFamily>,
}

impl Page {
    pub(super) fn family(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        metrics: Vec<Metric>,
    ) {
        // The encoder takes a family without a metric for an error.
        if metrics.is_empty() {
            return;
        }
        let mut family = MetricFamily::default();
        family.set_name(name.into());
        family.set_help(help.into());
        family.set_field_type(kind);
        family.set_metric(metrics);
        self.families.push(family);
    }

    pub(super) fn counters(&mut self, name: &str, help: &str, metrics: Vec<Metric>) {
        self.family(name, help, MetricType::COUNTER, metrics);
    }

    pub(super) fn gauges(&mut self, name: &str, help: &str, metrics: Vec<Metric>) {
        self.family(name, help, MetricType::GAUGE, metrics);
    }

    pub(super) fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.counters(name, help, vec![counter(&[], value)]);
    }

    pub(super) fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.gauges(name, help, vec![gauge(&[], value)]);
    }
}

pub(super) fn labelled(labels: &Labels<'_>) -> Metric {
    let mut metric = Metric::default();
    metric.set_label(
        labels
            .iter()
            .map(|(name, value)| {
                let mut pair = LabelPair::default();
                pair.set_name((*name).into());
                pair.set_value((*value).into());
                pair
            })
            .collect(),
    );
    metric
}

pub(super) fn counter(labels: &Labels<'_>, value: u64) -> Metric {
    let mut metric = labelled(labels);
    let mut inner = Counter::default();
    inner.set_value(value as f64);
    metric.set_counter(inner);
    metric
}

pub(super) fn gauge(labels: &Labels<'_>, value: f64) -> Metric {
    let mut metric = labelled(labels);
    let mut inner = Gauge::default();
    inner.set_value(value);
    metric.set_gauge(inner);
    metric
}
